"""Adapters in PEFT's format: what PEFT computes, writes, and what is refused."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.hf.cases import DEFAULTS, Case, torch_model
from models.tiny import batch_of, randomize
from safetensors.numpy import load_file, save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora, policy_apply, score_apply
from rlhf_jax.models.hf import load_adapters, load_pretrained, save_adapters
from rlhf_jax.models.hf.adapters import CONFIG
from rlhf_jax.models.hf.load import Kind
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.types import Params

torch = pytest.importorskip("torch", reason="the oracle of these tests")
peft = pytest.importorskip("peft", reason="the oracle of these tests")

# What transformers says to PEFT.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

FILE = "adapter_model.safetensors"
LORA = LoraConfig(rank=4, alpha=8.0)
BY_FAMILY = {case.family: case for case in DEFAULTS}
# Their names of all that takes adapters here.
MODULES = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MODULES |= {family: ATTENTION for family in ("mixtral", "qwen3_moe")}
LLAMA = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": "0"}
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small products are slower in several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Base(NamedTuple):
    """A model as theirs and as ours, and adapters of all its projections."""

    case: Case
    config: Any
    params: Params
    raw: dict[str, Any]
    run: Any  # params -> logits [B, T, V], or scores [B]
    adapters: Params

    def save(self, folder: Path, adapters=None, lora_config: LoraConfig = LORA) -> Path:
        adapters = self.adapters if adapters is None else adapters
        save_adapters(
            folder,
            adapters,
            lora_config,
            self.config,
            hf_config=self.raw,
            base_model="their/base",
        )
        return folder

    def load(self, folder: Path) -> tuple[Params, LoraConfig]:
        return load_adapters(folder, self.config, hf_config=self.raw)

    def outputs(self, adapters: Params, lora_config: LoraConfig = LORA) -> np.ndarray:
        return np.asarray(self.run(lora.apply(self.params, adapters, lora_config)))


BATCH = batch_of([[1] * 12] * 2)
TOKENS = np.random.default_rng(1).integers(3, 97, (2, 12))
BATCH = dataclasses.replace(BATCH, tokens=jnp.asarray(TOKENS, jnp.int32))


@functools.cache
def base_of(family: str, kind: Kind = "policy") -> Base:
    case = BY_FAMILY[family]
    with tempfile.TemporaryDirectory() as folder:
        torch_model(case, kind).save_pretrained(folder)
        config, params, raw = load_pretrained(folder, kind=kind)
    head = {}
    if kind == "reward":
        # Everything that a reward head has, none of it 0 or 1.
        head = {"score_head": randomize(params["score_head"])}
        params = {"trunk": params["trunk"]}
        score = score_apply(config)
        run = lambda whole: sequence_scores(score, whole, BATCH)
    else:
        run = lambda whole: policy_apply(config)(whole, BATCH).logits
    adapters = lora.init(params, LORA, key=jax.random.key(0))
    adapters = randomize(adapters) | head
    return Base(case, config, params, raw, quick_jit(run), adapters)


def torch_outputs(model) -> np.ndarray:
    with torch.no_grad():
        found = model(input_ids=torch.tensor(TOKENS), use_cache=False)
    return found.logits.numpy()


def theirs_with(base: Base, folder: Path, kind: str = "policy") -> Any:
    """Their model of the base with the adapters of a folder."""
    return peft.PeftModel.from_pretrained(torch_model(base.case, kind), folder).eval()


def made_by_peft(base: Base, folder: Path, kind: str = "policy", **options) -> Any:
    """Their model with adapters of their own, noise on them, written to a folder."""
    options = {"r": 4, "lora_alpha": 16.0, "task_type": "CAUSAL_LM"} | options
    options.setdefault("fan_in_fan_out", base.case.family == "gpt2")
    options.setdefault("target_modules", MODULES.get(base.case.family, LLAMA))
    config = peft.LoraConfig(**options)
    model = peft.get_peft_model(torch_model(base.case, kind), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return model


def assert_same_tree(found: Params, expected: Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def assert_same_files(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found / FILE), load_file(expected / FILE)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


of_families = pytest.mark.parametrize("family", list(BY_FAMILY))


@of_families
def test_peft_computes_what_we_do(family, tmp_path):
    base = base_of(family)
    ours = base.outputs(base.adapters)
    theirs = torch_outputs(theirs_with(base, base.save(tmp_path / "ours")))
    plain = torch_outputs(torch_model(base.case))
    assert np.abs(theirs - plain).max() > 0.1  # the adapters are no small part of it
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@of_families
def test_written_is_read(family, tmp_path):
    base = base_of(family)
    adapters, found = base.load(base.save(tmp_path / "ours"))
    assert_same_tree(adapters, base.adapters)
    assert (found.rank, found.alpha) == (LORA.rank, LORA.alpha)
    blocks = base.adapters["trunk"]["blocks"]
    assert set(found.targets or ()) == {
        name for part in blocks.values() for name in part
    }
    again = base.save(tmp_path / "again", adapters, found)
    assert_same_files(again, tmp_path / "ours")


@of_families
def test_what_peft_writes_is_read_and_written_again(family, tmp_path):
    base = base_of(family)
    theirs = torch_outputs(made_by_peft(base, tmp_path / "theirs"))
    adapters, found = base.load(tmp_path / "theirs")
    assert (found.rank, found.alpha) == (4, 16.0)
    ours = base.outputs(adapters, found)
    assert np.abs(theirs - torch_outputs(torch_model(base.case))).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    again = base.save(tmp_path / "again", adapters, found)
    assert_same_files(again, tmp_path / "theirs")


@of_families
def test_merged_by_peft_is_merged_by_us(family, tmp_path):
    base = base_of(family)
    model = theirs_with(base, base.save(tmp_path / "ours")).merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    found = load_pretrained(tmp_path / "merged").params
    expected = lora.merge(base.params, base.adapters, LORA)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["v_proj", "q_proj"]),
        ("gpt2", ["attn.c_attn", "mlp.c_proj"]),
        ("gpt_neox", ["query_key_value"]),
        ("phi3", ["qkv_proj"]),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_some_targets_and_both_scales(family, targets, rslora, tmp_path):
    base = base_of(family)
    made_by_peft(base, tmp_path / "theirs", target_modules=targets, use_rslora=rslora)
    adapters, found = base.load(tmp_path / "theirs")
    assert found.rank == 4 and found.scale == pytest.approx(8.0 if rslora else 4.0)
    merged = lora.merge(base.params, adapters, found)
    model = theirs_with(base, tmp_path / "theirs").merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    expected = load_pretrained(tmp_path / "merged").params
    for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)
    assert_same_files(
        base.save(tmp_path / "again", adapters, found), tmp_path / "theirs"
    )


@pytest.mark.parametrize(
    ("family", "wide"),
    [
        ("gpt2", {"attn.c_attn": 12}),
        ("gpt_neox", {"attention.query_key_value": 12}),
        ("phi3", {"self_attn.qkv_proj": 12, "mlp.gate_up_proj": 8}),
    ],
)
def test_fused_modules_have_the_ranks_of_their_parts(family, wide, tmp_path):
    base = base_of(family)
    folder = base.save(tmp_path / "ours")
    written = json.loads((folder / CONFIG).read_text())
    assert written["rank_pattern"] == wide
    # α/r is 2 in every module.
    assert written["alpha_pattern"] == {name: 2.0 * rank for name, rank in wide.items()}
    layers = {
        name: module
        for name, module in theirs_with(base, folder).named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(layers) == len(written["target_modules"]) * base.config.n_layers
    for name, module in layers.items():
        rank = next((r for suffix, r in wide.items() if name.endswith(suffix)), 4)
        assert module.r["default"] == rank, name
        assert module.scaling["default"] == 2.0, name


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ({"q_proj": 32.0, "v_proj": 32.0}, 32.0),
        ({"self_attn.q_proj": 32.0, "layers.0.self_attn.v_proj": 16.0}, None),
        ({r".*\.[qv]_proj": 32.0}, 32.0),  # their keys are regular expressions
    ],
)
def test_alpha_pattern_means_what_it_means_there(pattern, alpha, tmp_path):
    base = base_of("llama")
    folder, targets = tmp_path / "theirs", ["q_proj", "v_proj"]
    model = made_by_peft(base, folder, target_modules=targets, alpha_pattern=pattern)
    scales = {
        module.scaling["default"]
        for module in model.modules()
        if hasattr(module, "lora_A")
    }
    if alpha is None:
        assert len(scales) == 2
        with pytest.raises(UserError, match="alpha_pattern"):
            base.load(folder)
        return
    assert scales == {alpha / 4}
    _, found = base.load(folder)
    assert found.alpha == alpha


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_adapters_that_were_never_trained_are_read(family, tmp_path):
    # B is 0 everywhere, so that nothing tells which rank belongs to which part.
    base, rank = base_of(family), 12
    config = peft.LoraConfig(
        r=rank,
        target_modules=MODULES[family],
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(torch_model(base.case), config).save_pretrained(
        str(tmp_path / "theirs")
    )
    adapters, found = base.load(tmp_path / "theirs")
    again = base.save(tmp_path / "again", adapters, found)
    assert_same_files(again, tmp_path / "theirs")
    untrained = lora.init(base.params, LORA, key=jax.random.key(5))
    found, _ = base.load(base.save(tmp_path / "ours", untrained))
    assert_same_tree(found, untrained)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_reward_models_have_their_head(family, tmp_path):
    base = base_of(family, "reward")
    folder = base.save(tmp_path / "ours")
    written = json.loads((folder / CONFIG).read_text())
    assert written["task_type"] == "SEQ_CLS"
    constants = json.loads((folder / "score_offset.json").read_text())
    offset = constants["rlhf_jax_score_offset"]
    head = base.adapters["score_head"]
    constant = head["gain"] * head["bias"][0] + head["offset"]
    assert offset == pytest.approx(float(constant), abs=1e-6) and abs(offset) > 0.01
    ours = base.outputs(base.adapters)
    theirs = torch_outputs(theirs_with(base, folder, "reward"))
    assert np.ptp(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs + offset, atol=1e-4, rtol=0)
    adapters, found = base.load(folder)
    assert jax.tree.structure(adapters) == jax.tree.structure(base.adapters)
    assert_same_tree(adapters["trunk"], base.adapters["trunk"])
    np.testing.assert_allclose(base.outputs(adapters, found), ours, atol=1e-5, rtol=0)
    assert_same_files(base.save(tmp_path / "again", adapters, found), folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_reward_models_of_peft_are_read(family, tmp_path):
    base, folder = base_of(family, "reward"), tmp_path / "theirs"
    theirs = torch_outputs(made_by_peft(base, folder, "reward", task_type="SEQ_CLS"))
    adapters, found = base.load(folder)
    ours = base.outputs(adapters, found)
    assert np.ptp(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert_same_files(base.save(tmp_path / "again", adapters, found), folder)


def refused(base: Base, folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        base.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 1]]),
        ("modules_to_save", ["embed_tokens"]),
        ("modules_to_save", ["score", "embed_tokens"]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("peft_type", "LOHA"),
        # These change the weights of the base.
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
    ],
)
def test_options_that_change_the_numbers_are_refused(option, value, tmp_path):
    base = base_of("llama")
    folder = base.save(tmp_path / "ours")
    written = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(written | {option: value}))
    refused(base, folder, f"{option} = .* is not supported")


NAME = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def _lower_rank(tensors, layers=(1,)):
    for layer in layers:
        a, b = (NAME.format(x).replace("layers.1", f"layers.{layer}") for x in "AB")
        tensors[a], tensors[b] = tensors[a][:2].copy(), tensors[b][:, :2].copy()


def _drop(tensors, *names):
    for name in names:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lower_rank, "q_proj.*several ranks"),
        (functools.partial(_lower_rank, layers=(0, 1)), "rank_pattern"),
        (lambda t: _drop(t, NAME.format("A"), NAME.format("B")), "1 of 2 layers"),
        (lambda t: _drop(t, NAME.format("B")), "lora_B"),
        (
            lambda t: t.update(
                {"base_model.model.model.norm.lora_A.weight": np.ones(3)}
            ),
            "norm.*has no place in a llama",
        ),
        (lambda t: t.clear(), "adapter"),
    ],
    ids=["layer", "module", "missing layer", "missing half", "unknown", "empty"],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    base = base_of("llama")
    folder = base.save(tmp_path / "ours")
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    refused(base, folder, message)


@pytest.mark.parametrize(("field", "value"), [("d_ff", 40), ("n_layers", 3)])
def test_adapters_of_another_base_are_refused(field, value, tmp_path):
    base = base_of("llama")
    folder = base.save(tmp_path / "ours")
    other = base._replace(config=dataclasses.replace(base.config, **{field: value}))
    refused(other, folder, "is it for this base" if field == "d_ff" else "of 3 layers")


@pytest.mark.parametrize(
    ("family", "targets"),
    [("gpt_neox", ("q_proj",)), ("gpt2", ("q_proj", "v_proj")), ("phi3", ("up_proj",))],
)
def test_parts_of_a_fused_module_are_not_written(family, targets, tmp_path):
    base, config = base_of(family), LoraConfig(rank=2, targets=targets)
    part = lora.init(base.params, config, key=jax.random.key(0))
    with pytest.raises(UserError, match="go together.*lora.targets") as error:
        base.save(tmp_path / "ours", part, config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "extra",
    [
        {"lm_head": {"kernel": np.ones((32, 97), np.float32)}},
        {"value_head": {"kernel": np.ones((32, 1), np.float32)}},
    ],
)
def test_leaves_that_are_no_adapters_are_not_written(extra, tmp_path):
    base = base_of("llama")
    with pytest.raises(UserError, match="_head/kernel are not adapters") as error:
        base.save(tmp_path / "ours", base.adapters | extra)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_heads_of_several_scores_are_refused(tmp_path):
    base = base_of("llama", "reward")
    two = {name: base.adapters["score_head"][name] for name in ("gain", "offset")}
    two |= {"kernel": jnp.ones((32, 2)), "bias": jnp.ones(2)}
    with pytest.raises(UserError, match="score"):
        base.save(tmp_path / "ours", base.adapters | {"score_head": two})
    folder = base.save(tmp_path / "one")
    tensors = load_file(folder / FILE)
    tensors["base_model.model.score.weight"] = np.ones((2, 32), np.float32)
    save_file(tensors, folder / FILE)
    refused(base, folder, "score")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3"])
def test_the_output_projection_takes_adapters(family, tmp_path):
    base = base_of(family)
    qkv = ("q_proj", "k_proj", "v_proj")
    config = LoraConfig(4, 8.0, (*qkv, "lm_head"))
    adapters = randomize(lora.init(base.params, config, key=jax.random.key(2)))
    folder = base.save(tmp_path / "ours", adapters, config)
    ours = base.outputs(adapters, config)
    theirs = torch_outputs(theirs_with(base, folder))
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    without = {name: tree for name, tree in adapters.items() if name != "lm_head"}
    layers = dataclasses.replace(config, targets=qkv)
    assert np.abs(ours - base.outputs(without, layers)).max() > 0.1
    found, read = base.load(folder)
    assert_same_tree(found, adapters)
    assert read == config
