"""Bases with adapters, as PEFT has them and as we have them."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.hf.cases import DEFAULTS, Case, torch_model
from models.tiny import batch_of, quick_jit, randomize
from safetensors.numpy import load_file

from rlhf_jax.models import lora, policy_apply, score_apply
from rlhf_jax.models.hf import load_adapters, load_pretrained, save_adapters
from rlhf_jax.models.hf.load import Kind
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.types import Params

torch = pytest.importorskip("torch", reason="the oracle of these tests")
peft = pytest.importorskip("peft", reason="the oracle of these tests")

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
