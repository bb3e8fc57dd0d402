"""What we write is what was read, and what transformers reads again."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.hf.cases import CASES, DEFAULTS, assert_one_line, torch_logits, torch_model
from models.tiny import batch_of, quick_jit, randomize
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from rlhf_jax.data import train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.models.heads import ActorCritic, ScoreModel, score_apply
from rlhf_jax.models.hf import load_pretrained, save_pretrained
from rlhf_jax.models.hf.card import ModelCard
from rlhf_jax.models.hf.files import open_tensors
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.rewards.learned import normalize_scores

torch = pytest.importorskip("torch", reason="the oracle of these tests")
pytestmark = pytest.mark.fault(27)

TOKENS = np.random.default_rng(2).integers(3, 97, 20)
TIED_OR_NOT = [
    case
    for case in CASES
    if "tie_word_embeddings" in case.config
    and case.family in ("gpt2", "gpt_neox", "llama", "gemma2")
]
PLAIN = TransformerConfig(
    vocab_size=97,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=8,
    d_ff=48,
    max_length=64,
)
CLASSES = {
    "policy": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification,
}


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    """Waiting for the disk is what `test_write_files` is about."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def of_cases(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def of_family(*families: str):
    return of_cases([case for case in DEFAULTS if case.family in families])


def reload(folder, kind="policy"):
    """transformers' model of a folder; every tensor has its place."""
    model, info = CLASSES[kind].from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    for problem, names in info.items():
        assert not names, (problem, names)
    return model.eval()


def assert_same(ours, again):
    assert jax.tree.structure(ours) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def contents(folder) -> dict[str, tuple]:
    """(dtype, shape, bytes) of every tensor of a folder."""
    files = open_tensors(folder)
    arrays = {name: files.read(name) for name in files.specs}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


def random_params(module):
    """Like `init_params`, without compiling anything."""
    shapes = jax.eval_shape(
        functools.partial(init_params, module), key=jax.random.key(0)
    )
    return randomize(jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes))


@pytest.fixture(scope="module")
def plain():
    """Parameters of a network that was made here."""
    return random_params(CausalLM(PLAIN))


@of_cases([*DEFAULTS, *TIED_OR_NOT])
def test_saving_and_loading_changes_no_bit(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path / "theirs")
    found = load_pretrained(tmp_path / "theirs")
    save_pretrained(
        tmp_path / "ours", found.params, found.config, hf_config=found.hf_config
    )
    again = load_pretrained(tmp_path / "ours")
    assert again.config == found.config
    assert_same(found.params, again.params)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    expected = torch_logits(model, TOKENS)
    logits = torch_logits(reload(tmp_path / "ours"), TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@of_cases(DEFAULTS)
def test_bfloat16_is_kept(case, tmp_path):
    torch_model(case).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    found = load_pretrained(tmp_path / "theirs", param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {
        jnp.dtype("bfloat16")
    }
    save_pretrained(
        tmp_path / "ours", found.params, found.config, hf_config=found.hf_config
    )
    theirs, ours = contents(tmp_path / "theirs"), contents(tmp_path / "ours")
    assert {str(dtype) for dtype, _, _ in theirs.values()} == {"bfloat16"}
    assert ours == theirs
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == (
        "bfloat16"
    )


@of_family("llama", "mixtral")
def test_several_files_are_one_checkpoint(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    found, one = (
        load_pretrained(tmp_path / "several"),
        load_pretrained(tmp_path / "one"),
    )
    assert_same(found.params, one.params)
    save_pretrained(
        tmp_path / "ours",
        found.params,
        found.config,
        hf_config=found.hf_config,
        max_shard_size="20KB",
    )
    for name in ("several", "ours"):
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 2
    assert_same(load_pretrained(tmp_path / "ours").params, one.params)
    logits = torch_logits(reload(tmp_path / "ours"), TOKENS)
    np.testing.assert_allclose(logits, torch_logits(model, TOKENS), atol=1e-4, rtol=0)


@of_cases(DEFAULTS)
def test_reward_models_keep_their_scores(case, tmp_path):
    """Up to the constant that a linear layer without a bias has no place for."""
    model = torch_model(case, "reward")
    model.save_pretrained(tmp_path / "theirs")
    found = load_pretrained(tmp_path / "theirs", kind="reward")
    params = with_head(found.params, gain=0.5, offset=0.75, bias=[0.25])
    save_pretrained(tmp_path / "ours", params, found.config, hf_config=found.hf_config)
    raw = json.loads((tmp_path / "ours/config.json").read_text())
    assert raw["rlhf_jax_score_offset"] == 0.5 * 0.25 + 0.75
    before, after = (
        torch_scores(model),
        torch_scores(reload(tmp_path / "ours", "reward")),
    )
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(after, 0.5 * before, atol=1e-4, rtol=0)
    again = load_pretrained(tmp_path / "ours", kind="reward").params["score_head"]
    expected = {"gain": 1.0, "bias": 0.0, "offset": 0.875}
    assert {name: float(again[name].sum()) for name in expected} == expected


BATCH = batch_of([[1] * 9 + [0] * 3, [1] * 12])


def with_head(params, **head):
    """Parameters with other numbers in the head."""
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in head.items()}
    return params | {"score_head": params["score_head"] | arrays}


def torch_scores(model) -> np.ndarray:
    """[B, 1] of the batch; theirs looks for the padding's id."""
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(np.where(BATCH.mask, BATCH.tokens, 0)).long(),
            attention_mask=torch.tensor(np.asarray(BATCH.mask)).long(),
        ).logits.numpy()


def test_a_normalised_reward_model_of_our_own_is_a_llama(tmp_path):
    params = with_head(random_params(ScoreModel(PLAIN)), gain=20.0, bias=[0.25])
    params = normalize_scores(params, jnp.array([1.0, 4.0]))
    raw = llama_raw(tmp_path, params) | {"pad_token_id": 0}
    save_pretrained(tmp_path / "ours", params, PLAIN, hf_config=raw)
    again = load_pretrained(tmp_path / "ours", kind="reward")
    score = quick_jit(functools.partial(sequence_scores, score_apply(PLAIN)))
    ours = np.asarray(score(params, BATCH))
    np.testing.assert_allclose(score(again.params, BATCH), ours, atol=1e-5, rtol=0)
    theirs = torch_scores(reload(tmp_path / "ours", "reward"))
    offset = again.hf_config["rlhf_jax_score_offset"]
    assert np.abs(ours - offset).max() > 0.1
    np.testing.assert_allclose(ours - offset, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "d_head": 6},
        {"activation": "gelu_tanh", "norm_eps": 1e-3},
    ],
)
def test_a_network_of_our_own_is_written_as_a_llama(options, tmp_path):
    config = dataclasses.replace(PLAIN, **options)
    params = random_params(CausalLM(config))
    if not options:
        params = init_params(CausalLM(config), key=jax.random.key(0))
    save_pretrained(tmp_path / "ours", params, config)
    batch = batch_of([[1] * 12])
    ours = quick_jit(policy_apply(config))(params, batch).logits[0]
    theirs = torch_logits(reload(tmp_path / "ours"), np.asarray(batch.tokens)[0])
    assert np.abs(theirs).max() > (1 if options else 0.1)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert load_pretrained(tmp_path / "ours").config == config


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "layer"},
        {"gated_mlp": False},
        {"qkv_bias": True},
        {"qk_norm": "head"},
        {"window": 4, "local_layers": (0,)},
        {"logit_softcap": 2.0},
        {"positions": "learned"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_network_that_is_no_llama_is_refused(options, tmp_path):
    config = dataclasses.replace(PLAIN, **options)
    params = random_params(CausalLM(config))
    with pytest.raises(UserError) as error:
        save_pretrained(tmp_path / "ours", params, config)
    name = "o_bias" if "qkv_bias" in options else next(iter(options))
    assert_one_line(error, "ours", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("eos", "pad", "expected"),
    [
        (2, 0, ([2], 0)),
        (2, 2, ([2], None)),
        ([2, 5], 2, ([5], 2)),
        ([5, 2, 7], 2, ([5, 7], 2)),
        ([2], 2, ([2], None)),
        ([2, 2], 2, ([2], None)),
        (None, 0, ([], 0)),
        (None, None, ([], None)),
    ],
)
def test_generation_never_ends_with_padding(eos, pad, expected, plain, tmp_path):
    raw = llama_raw(tmp_path, plain) | {"eos_token_id": eos, "pad_token_id": pad}
    save_pretrained(tmp_path / "ours", plain, PLAIN, hf_config=raw)
    found = GenerationConfig.from_pretrained(tmp_path / "ours")
    ends = found.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    assert (ends, found.pad_token_id) == expected


def llama_raw(tmp_path, params) -> dict:
    """config.json of a network that was made here."""
    save_pretrained(tmp_path / "first", params, PLAIN)
    return json.loads((tmp_path / "first/config.json").read_text())


def test_one_dtype_is_written(plain, tmp_path):
    """Also where config.json had the old name of it."""
    raw = llama_raw(tmp_path, plain) | {"torch_dtype": "bfloat16", "dtype": None}
    save_pretrained(tmp_path / "ours", plain, PLAIN, hf_config=raw)
    raw = json.loads((tmp_path / "ours/config.json").read_text())
    assert raw["dtype"] == "float32" == raw.get("torch_dtype", "float32")


def test_leaves_go_where_they_shall(plain, tmp_path):
    save_pretrained(tmp_path / "ours", plain, PLAIN)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = lambda leaf: (
        (None,) * (leaf.ndim - 1) + ("x" if leaf.shape[-1] % 8 == 0 else None,)
    )
    shardings = jax.tree.map(
        lambda leaf: jax.NamedSharding(mesh, jax.P(*spec(leaf))), plain
    )
    found = load_pretrained(tmp_path / "ours", shardings=shardings).params
    assert_same(found, plain)
    for leaf, sharding in zip(
        jax.tree.leaves(found), jax.tree.leaves(shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_the_tokenizer_and_its_template_survive(plain, tmp_path):
    tokenizer = train_tokenizer(["a good film .", "a bad film ."] * 3, vocab_size=280)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    save_pretrained(tmp_path / "ours", plain, PLAIN, tokenizer=tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    text = "a good, bad film … !"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    for file in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "ours" / file).read_text())
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        assert [found[name] for name in names] == [0, 1, 2]


def test_what_is_written_beside_the_weights(plain, tmp_path):
    save_pretrained(tmp_path / "bare", plain, PLAIN)
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    card = ModelCard("PPO", "reviews.jsonl", {"reward": 0.7519}, base_model="org/base")
    save_pretrained(tmp_path / "card", plain, PLAIN, card=card)
    text = (tmp_path / "card/README.md").read_text()
    for part in ("PPO", "reviews.jsonl", "org/base", "| reward | 0.7519 |", "policy"):
        assert part in text
    assert re.match(r"---\n.*base_model: org/base\n.*---\n", text, re.DOTALL)


def test_the_card_of_a_reward_model_names_its_offset(tmp_path):
    params = with_head(
        random_params(ScoreModel(PLAIN)), gain=1.0, bias=[0], offset=-1.5
    )
    card = ModelCard("Bradley-Terry", "pairs.jsonl")
    save_pretrained(tmp_path / "ours", params, PLAIN, card=card)
    text = (tmp_path / "ours/README.md").read_text()
    assert "text-classification" in text and "add -1.5" in text
    assert not (tmp_path / "ours/generation_config.json").exists()


def _adapters(params):
    blocks = params["trunk"]["blocks"]
    query = blocks["attn"]["q_proj"] | {"lora_a": jnp.zeros((2, 32, 4))}
    blocks = blocks | {"attn": blocks["attn"] | {"q_proj": query}}
    return params | {"trunk": params["trunk"] | {"blocks": blocks}}


@pytest.mark.parametrize(
    ("module", "change", "named"),
    [
        (ActorCritic(PLAIN), lambda params: params, "value_head/kernel"),
        (CausalLM(PLAIN), _adapters, "q_proj/lora_a"),
        (ScoreModel(PLAIN, num_outputs=2), lambda params: params, "2 outputs"),
    ],
)
def test_what_has_no_place_is_refused(module, change, named, tmp_path):
    params = change(random_params(module))
    with pytest.raises(UserError) as error:
        save_pretrained(tmp_path / "ours", params, PLAIN)
    assert_one_line(error, "ours", named)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_shape_are_refused(plain, tmp_path):
    raw = llama_raw(tmp_path, plain) | {"num_hidden_layers": 3}
    with pytest.raises(UserError) as error:
        save_pretrained(tmp_path / "ours", plain, PLAIN, hf_config=raw)
    assert_one_line(error, "n_layers is 2 here, 3 there")


def test_a_folder_that_is_not_empty_is_left_alone(plain, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        save_pretrained(tmp_path, plain, PLAIN)
    assert_one_line(error, str(tmp_path), "not an empty folder")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
