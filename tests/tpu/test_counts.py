"""Counts of compiled programs: loops as they run, collectives, arrays of logits."""

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from rlhf_jax.models import CausalLM, TransformerConfig, init_params
from tpu.collectives import sent
from tpu.context import count, square
from tpu.cost import flops, products
from tpu.flops import logits_arrays, own_flops
from tpu.hlo import parse
from tpu.scaling import spread
from tpu.traffic import traffic
from tpu.updates import compile_sft

MODEL = TransformerConfig(
    vocab_size=96,
    d_model=16,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_head=8,
    d_ff=24,
    max_length=8,
)

# Two devices; a loop of 5 with a product of [4, 8] and [8, 8], gathered before it.
LOOP = """
%body (p: (s32[], f32[4,8], f32[4,8])) -> (s32[], f32[4,8], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}, f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %half = f32[4,8]{1,0} get-tuple-element(%p), index=2
  %w = f32[8,8]{1,0} all-gather(%half), replica_groups=[1,2]<=[2], dimensions={0}
  %y = f32[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(step)/blocks/mlp/up_proj"}
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[4,8]{1,0}, f32[4,8]{1,0}) tuple(%i, %y, %half)
}

%until (p.1: (s32[], f32[4,8], f32[4,8])) -> pred[] {
  %p.1 = (s32[], f32[4,8]{1,0}, f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (x.1: (s32[], f32[4,8], f32[4,8])) -> f32[4,8] {
  %x.1 = (s32[], f32[4,8]{1,0}, f32[4,8]{1,0}) parameter(0)
  %loop = (s32[], f32[4,8]{1,0}, f32[4,8]{1,0}) while(%x.1), condition=%until, \
body=%body
  %z = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[4,8]{1,0} all-reduce(%z), replica_groups={{0,1}}, to_apply=%add
}"""


def test_loops_count_as_often_as_they_run():
    """A product is 2 · 4 · 8 · 8 operations."""
    program = parse(LOOP)
    assert flops(program) == 5 * 512
    assert flops(program, loops=False) == 512
    assert products(program) == {"MLP": 5 * 512}


def test_what_a_device_sends():
    """All-gather: half of 256 bytes, 5 times. All-reduce of 128: half of it, twice."""
    assert sent(parse(LOOP), 2) == {"all-gather": 5 * 128, "all-reduce": 128}


def test_bytes_by_cause():
    """The product reads 128 and 256 and writes 128; a collective reads and writes."""
    moved = traffic(parse(LOOP))
    assert moved["MLP"] == 5 * (128 + 256 + 128)
    assert moved["collectives"] == 5 * (128 + 256) + 2 * 128


def test_padding_of_a_convolution_is_not_counted():
    """A batched product on a TPU: of 8 · 8 pairs along the dilated axis, 8 meet."""
    program = parse("""
ENTRY %main (x: f32[8,4,3], w: f32[8,3,5]) -> f32[8,4,5] {
  %x = f32[8,4,3]{2,1,0} parameter(0)
  %w = f32[8,3,5]{2,1,0} parameter(1)
  ROOT %y = f32[8,4,5]{2,1,0} convolution(%x, %w), \
window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}""")
    assert flops(program) == 2 * 8 * 4 * 3 * 5


def test_of_slices_only_what_is_read_and_written():
    """A fusion reads a row of 4 · 32 bytes, and writes one."""
    program = parse("""
%fused (a: f32[4,8], b: f32[4,8], i: s32[]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[4,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}
  ROOT %to = f32[4,8]{1,0} dynamic-update-slice(%b, %row, %i, %i)
}

ENTRY %main (x: f32[4,8], y: f32[4,8], j: s32[]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %y = f32[4,8]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %z = f32[4,8]{1,0} fusion(%x, %y, %j), kind=kLoop, calls=%fused
}""")
    assert sum(traffic(program).values()) == 32 + 32 + 4


def test_compiled_loops_once_are_the_compilers_count():
    def step(x):
        def layer(x, w):
            return jnp.tanh(x @ w) + 1.0, None

        return jax.lax.scan(layer, x, jnp.ones((6, 16, 16)))[0]

    compiled: Any = jax.jit(step).lower(jnp.ones((8, 16))).compile()
    program, counted = parse(compiled.as_text()), compiled.cost_analysis()
    assert sum(products(program).values()) == 6 * 2 * 8 * 16 * 16
    assert flops(program, loops=False) == pytest.approx(counted["flops"], rel=0.02)


def test_the_models_own_operations():
    """6 · N · B · T, N from the parameters, and 6 · L · T · d of attention a token."""
    params = jax.eval_shape(
        functools.partial(init_params, CausalLM(MODEL)), key=jax.random.key(0)
    )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    matrices = [x.size for path, x in leaves if "kernel" in jax.tree_util.keystr(path)]
    attention, tokens = 2 * MODEL.n_layers * MODEL.max_length * 32, 4 * MODEL.max_length
    forward = 2 * sum(matrices) + attention
    assert own_flops(MODEL, "sft", 4) == 3 * tokens * forward
    assert own_flops(MODEL, "dpo", 4) == 4 * tokens * forward
    critic = forward - 2 * MODEL.d_model * MODEL.vocab_size
    assert own_flops(MODEL, "ppo", 4) == 4 * 3 * tokens * (forward + critic)


@pytest.mark.parametrize("shape", ["2,8,96", "16,96", "1536", "3,16,32"])
def test_arrays_of_logits_are_found(shape):
    assert logits_arrays(_one_array(shape), MODEL, rows=2)


@pytest.mark.parametrize("shape", ["8,96", "16,97", "3,16,31"])
def test_other_arrays_are_not(shape):
    assert not logits_arrays(_one_array(shape), MODEL, rows=2)


@pytest.mark.parametrize("shape, found", [("8,8", 1), ("9,2,8", 1), ("8,7", 0)])
def test_arrays_of_every_two_tokens_are_found(shape, found):
    assert len(square(_one_array(shape), tokens=8)) == found


def _one_array(shape):
    return parse(f"ENTRY %main () -> f32[1] {{\n  %x = f32[{shape}] iota()\n}}")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_a_device_does_the_same_among_four_and_eight(mesh):
    counted = []
    for n in (4, 8):
        parts = {"fsdp": n} if mesh == "fsdp" else {}
        compiled = compile_sft(MODEL, jax.devices()[:n], 2 * n, **parts)
        program = parse(compiled.as_text())
        whole = sum(sent(program, n).values()) * n / (n - 1)
        counted.append((flops(program), whole))
    four, eight = counted
    assert eight == pytest.approx(four, rel=0.05)


def test_a_device_holds_its_part_of_long_rows():
    """Two rows of 512 tokens: an n-th of what one device holds, and of its work.

    Keys or values of a layer are 2 · 512 · 16 numbers, 66 kB. They are gathered twice,
    (n − 1) / n sent each time, and their gradients summed, twice as much: 3 layers ·
    2 · 4 · 66 · ¾ = 1,180 kB. Queries and what they get change places, weights are
    small; sums by block, or queries by collective-permute, are several MB.
    """
    one, four = (count(MODEL, n, tokens=512, rows=2) for n in (1, 4))
    assert four["beside_mb"] < 0.35 * one["beside_mb"]
    assert four["gflop"] == pytest.approx(one["gflop"] / 4, rel=0.02)
    assert four["square"] == 0
    assert 1.18 < four["sent_mb"] < 2


def test_log_probs_are_shared_by_devices_of_one_row_of_a_batch():
    """Which a vocabulary in parts alone does not do: slices of it go to all."""
    alone, shared = (
        flops(parse(compile_sft(MODEL, jax.devices()[:n], 4, tensor=n).as_text()))
        for n in (1, 2)
    )
    assert shared == pytest.approx(alone / 2, rel=0.02)


def test_spread_is_of_more_than_two_devices():
    lines = [{"devices": n, "gflop": g} for n, g in ((1, 9), (2, 5), (4, 2), (8, 3))]
    assert spread(lines, "gflop") == 0.5


def test_a_vocabulary_in_parts_is_gathered_slice_by_slice():
    """Its weight is read three times, for logits twice, and its gradient summed.

    With ¾ of each sent that is 3 + 2 times ¾ of it. Slices that asked for all that the
    other devices hold would send it as often as there are slices, 4.
    """
    model = dataclasses.replace(MODEL, n_layers=1, vocab_size=24_600)
    compiled = compile_sft(model, jax.devices()[:4], 4, tensor=4)
    weight = 4 * model.d_model * model.vocab_size
    assert sum(sent(parse(compiled.as_text()), 4).values()) < 6 * 0.75 * weight


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs jax[tpu]")
def test_counts_of_a_program_for_a_tpu(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)
    )
    compiled = compile_sft(MODEL, topology.devices, 2)
    program, counted = parse(compiled.as_text()), compiled.cost_analysis()
    assert flops(program, loops=False) == pytest.approx(counted["flops"], rel=0.02)
    assert flops(program) > own_flops(MODEL, "sft", 2)
