"""Adapters that cannot be read or written as they are: refused by name."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.hf.adapter_bases import (
    FILE,
    Base,
    base_of,
)
from safetensors.numpy import load_file, save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora
from rlhf_jax.models.hf.adapters import CONFIG
from rlhf_jax.models.lora import LoraConfig

torch = pytest.importorskip("torch", reason="the oracle of these tests")
peft = pytest.importorskip("peft", reason="the oracle of these tests")

# What transformers says to PEFT.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small products are slower in several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
