"""What a checkpoint may say: each option is honoured, or refused by its name."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from models.hf.cases import (
    BEGIN,
    CASES,
    DEFAULTS,
    END,
    SMALL,
    assert_one_line,
    table,
)
from safetensors.numpy import load_file, save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models.hf import (
    FAMILIES,
    Kind,
    label_names,
    load_pretrained,
    save_pretrained,
)
from rlhf_jax.models.hf.load import abstract_params, read_transformer_config

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


def raw_of(family: str, **options) -> dict:
    return {"model_type": family} | SMALL[family] | options


def read(family: str, **options):
    """Our config of a family's default case with these options."""
    return read_transformer_config(raw_of(family, **options))[1]


MIXED = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("family", "options", "value"),
    [
        ("llama", {"model_type": "bloom"}, "'bloom'"),
        ("llama", {"model_type": None}, "None"),
        ("llama", {"quantization_config": {"bits": 4}}, "{'bits': 4}"),
        ("llama", {"warp_attention": True}, "True"),
        ("llama", {"sliding_window": 5}, "5"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "True"),
        ("gpt2", {"add_cross_attention": True}, "True"),
        ("gemma2", {"use_bidirectional_attention": True}, "True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "50.0"),
        ("mixtral", {"router_jitter_noise": 0.1}, "0.1"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "[1]"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "2"),
        # transformers has the window in all layers of these, whatever it is told.
        ("mistral", {"sliding_window": 5, "layer_types": MIXED}, "full_attention"),
        ("phi3", {"sliding_window": 5, "layer_types": MIXED}, "full_attention"),
        ("mixtral", {"sliding_window": 5, "layer_types": MIXED}, "full_attention"),
        (
            "qwen3_moe",
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED},
            "full_attention",
        ),
    ],
    ids=str,
)
def test_an_option_that_is_not_supported_is_refused(family, options, value):
    with pytest.raises(UserError) as error:
        read(family, **options)
    assert_one_line(error, list(options)[-1], value)


@pytest.mark.parametrize(
    ("family", "options", "parts"),
    [
        ("llama", {"hidden_act": "quick_gelu"}, ["activation", "'quick_gelu'"]),
        ("gpt2", {"activation_function": "tanh"}, ["activation", "'tanh'"]),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 500.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                },
                "original_max_position_embeddings": 32,
            },
            ["rope_type", "'longrope'"],
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "sliding_attention": {
                        "rope_type": "linear",
                        "rope_theta": 50.0,
                        "factor": 2.0,
                    },
                    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                }
            },
            ["rope_type", "'linear'", "sliding"],
        ),
        (
            "qwen3",  # one set a kind of layer is Gemma 3's alone
            {
                "layer_types": ["full_attention"] * 3,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 500.0}
                },
            },
            ["rope_parameters", "full_attention"],
        ),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["chunked_attention"] * 3,
            },
            ["layer_types", "chunked_attention"],
        ),
        ("llama", {"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ("llama", {"num_key_value_heads": 3}, ["n_kv_heads=3"]),
    ],
    ids=str,
)
def test_a_value_that_is_not_supported_is_refused(family, options, parts):
    with pytest.raises(UserError) as error:
        read(family, **options)
    assert_one_line(error, *parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_what_it_does_not_know(family):
    assert read(family) == read(family, warp_attention=False, warp_scale=None)
    with pytest.raises(UserError) as error:
        read(family, warp_attention=True)
    assert_one_line(error, "warp_attention = True", family)


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        (
            "llama",
            {
                "rope_parameters": None,
                "rope_theta": 700.0,
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "torch_dtype": "bfloat16",
            },
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 700.0,
                    "factor": 2.0,
                }
            },
        ),
        (
            "gpt_neox",
            {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 700.0},
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 700.0,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        (
            "gemma3_text",
            {
                "num_hidden_layers": 4,
                "layer_types": None,
                "rope_parameters": None,
                "rope_theta": 700.0,
                "rope_local_base_freq": 70.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "sliding_window_pattern": 2,
            },
            {
                "num_hidden_layers": 4,
                "layer_types": MIXED * 2,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
                    "full_attention": {
                        "rope_type": "linear",
                        "rope_theta": 700.0,
                        "factor": 8.0,
                    },
                },
            },
        ),
        (
            "phi3",
            {
                "rope_parameters": None,
                "rope_theta": 700.0,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 128,
            },
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 700.0,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
    ],
    ids=["llama", "gpt_neox", "gemma3_text", "phi3"],
)
def test_old_spellings_say_the_same(family, old, new):
    given = {
        n: value for n, value in raw_of(family, **old).items() if value is not None
    }
    config = read_transformer_config(given)[1]
    assert config == read(family, **new) != read(family)


def test_a_full_reading_of_yarn():
    rope = read("llama", rope_parameters=YARN).rope
    assert (rope.kind, rope.factor, rope.original_length) == ("yarn", 4.0, 32)
    assert rope.attention_factor == pytest.approx(0.1 * np.log(4) + 1)


# Checkpoints: a Llama whose files are changed.


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("once") / "llama", "llama")


@pytest.fixture
def folder(untouched, tmp_path) -> Path:
    return Path(shutil.copytree(untouched, tmp_path / "llama"))


def checkpoint(folder: Path, family: str, kind: Kind = "policy", **options) -> Path:
    """A small one of a family, with random numbers."""
    raw = raw_of(family, **options)
    config = read_transformer_config(raw)[1]
    rng = np.random.default_rng(0)
    fill = lambda x: rng.normal(size=x.shape).astype(x.dtype)
    params = jax.tree.map(fill, abstract_params(config, kind))
    save_pretrained(folder, params, config, hf_config=raw)
    return folder


def change_config(folder: Path, **options) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def change_tensors(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder: Path, *parts: str, kind: Kind = "policy") -> None:
    with pytest.raises(UserError) as error:
        load_pretrained(folder, kind=kind)
    assert_one_line(error, str(folder), *parts)


QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.fault(25)
def test_a_missing_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop(QUERY))
    refused(folder, QUERY, "model.layers.0.self_attn.q_proj.weight")


def test_an_unexpected_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update(extra=np.ones(2, "f4")))
    refused(folder, "extra", "LlamaForCausalLM")


def test_a_bias_that_config_json_does_not_announce_is_named(folder):
    name = QUERY.replace("weight", "bias")
    change_tensors(folder, lambda tensors: tensors.update({name: np.ones(32, "f4")}))
    refused(folder, name)


@pytest.mark.fault(25)
def test_a_tensor_of_another_shape_is_named(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(
        folder, lambda tensors: tensors.update({name: tensors[name].T.copy()})
    )
    refused(folder, name, "[32, 48]", "[48, 32]")


@pytest.mark.fault(25)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_a_tensor_of_integers_is_named(folder, dtype):
    change_tensors(folder, lambda t: t.update({QUERY: t[QUERY].astype(dtype)}))
    refused(folder, QUERY, dtype)


def test_a_tied_head_that_differs_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "tied", "llama", tie_word_embeddings=True)
    expected = load_pretrained(folder).params
    copy = lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0})
    change_tensors(folder, copy)  # the same numbers again are harmless
    found = load_pretrained(folder).params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    change_tensors(folder, lambda t: t["lm_head.weight"].__setitem__((0, 0), 9.0))
    refused(folder, "tie_word_embeddings", "lm_head.weight")


def test_gpt2_as_it_was_published_loads(tmp_path):
    """Names without the trunk's prefix, and the causal mask among the tensors."""
    folder = checkpoint(tmp_path / "gpt2", "gpt2")
    expected = load_pretrained(folder).params

    def publish(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), "f4"))

    change_tensors(folder, publish)
    found = load_pretrained(folder).params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_rewards_have_an_output_a_label(tmp_path):
    folder = checkpoint(tmp_path / "reward", "llama", kind="reward")
    found = load_pretrained(folder, kind="reward")
    assert label_names(found.hf_config) == ("LABEL_0",)
    change_config(folder, id2label={"0": "bad", "1": "good"})
    refused(folder, "score.weight", "expected [2, ", kind="reward")
    change_config(folder, id2label=None, num_labels=3)
    refused(folder, "score.weight", "expected [3, ", kind="reward")


def test_a_policy_is_no_reward_model_nor_the_other_way_round(tmp_path, folder):
    change_config(folder, num_labels=1)
    refused(folder, "score.weight", kind="reward")
    reward = checkpoint(tmp_path / "reward", "llama", kind="reward")
    refused(reward, "lm_head.weight")


@pytest.mark.fault(26)
def test_code_of_a_checkpoint_is_never_run(folder):
    expected = load_pretrained(folder).params
    auto_map = {"AutoModelForCausalLM": "evil.Model"}
    change_config(folder, auto_map=auto_map)
    (folder / "evil.py").write_text("raise SystemExit('run')")
    refused(folder, "auto_map", "evil.Model")
    found = load_pretrained(folder, ignore_remote_code=True)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, expected))
    assert "auto_map" not in found.hf_config


def test_every_option_is_in_the_table_once():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)
    assert [case.family for case in DEFAULTS] == list(FAMILIES)


def test_the_page_has_the_table():
    text = PAGE.read_text()
    found = text.split(BEGIN)[1].split(END)[0].strip("\n") + "\n"
    assert found == table(), (
        f"{PAGE} is not what tests/models/hf/cases.py says: put its table() between "
        "the two comments, as printed by PYTHONPATH=tests python -c "
        "'from models.hf.cases import table; print(table())'"
    )
