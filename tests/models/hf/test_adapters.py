"""Adapters in PEFT's format: what PEFT computes and writes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from models.hf.adapter_bases import (
    BY_FAMILY,
    LORA,
    MODULES,
    assert_same_files,
    assert_same_tree,
    base_of,
    made_by_peft,
    theirs_with,
    torch_outputs,
)
from models.hf.cases import torch_model
from models.tiny import randomize

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora
from rlhf_jax.models.hf import load_pretrained
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
