"""Steps over meshes: leaves where their names say, updates those of one device."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps.batches import KINDS, MODEL, assert_same, network, pairs, plain, rows, task

from rlhf_jax import optim
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, RopeConfig, init_params, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.sharding import (
    make_mesh,
    mesh_parallel,
    on_mesh,
    place_batch,
    place_state,
    state_shardings,
)
from rlhf_jax.steps import create_state
from rlhf_jax.steps.forward import policy_forward

# Devices, what they are parts of, the rest shares the rows; whether these are packed.
MESHES = {
    "fsdp": (4, {"fsdp": 4}, False),
    "all": (8, {"fsdp": 2, "tensor": 2}, False),
    "sequence and data": (4, {"sequence": 2}, True),
    "sequence": (4, {"sequence": 4}, False),
    "sequence and tensor": (4, {"sequence": 2, "tensor": 2}, False),
}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Most of the time goes there; what runs once need not run fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def updated(kind, mesh, parts=1, *, packed=False):
    step, state, batch = task(kind, parts, table=False, packed=packed)
    mapped = mesh_parallel(step, donate_state=True)
    state = place_state(state, mesh)
    where = jax.tree.map(lambda x: x.sharding, state)
    after, metrics = mapped(state, place_batch(batch, mesh))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x.sharding, after), where)
    return after.params, metrics.compute()


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_that_of_one_device(kind, mesh):
    count, parts, packed = MESHES[mesh]
    mesh = make_mesh(jax.devices()[:count], **parts)
    found = updated(kind, mesh, packed=packed)
    assert_same(found, plain(kind, table=False), atol=1e-5)


VARIANTS: Any = {
    "learned positions": {"positions": "learned"},
    "windows": {"local_layers": (1,), "window": 3, "qk_norm": "all"},
    "dynamic rope": {"rope": RopeConfig(kind="dynamic", factor=2.0, original_length=4)},
    "experts": {"n_experts": 4, "experts_per_token": 2},
    "tied": {"tie_embeddings": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_any_network_may_be_cut(variant):
    model = dataclasses.replace(MODEL, **VARIANTS[variant])
    params = init_params(CausalLM(model), key=jax.random.key(0))
    forward = lambda params, batch: (
        policy_forward(policy_apply(model), params, batch, temperature=1.0).logprobs
    )
    batch, mesh = rows(packed=True), make_mesh(jax.devices()[:4], sequence=2)
    placed = place_state(params, mesh), place_batch(batch, mesh)
    found = jax.jit(on_mesh(forward, mesh))(*placed)
    real = batch.segment_ids > 0
    expected = jax.jit(forward)(params, batch)
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_micro_batches_and_the_order_of_devices_change_nothing(kind):
    mesh = make_mesh(jax.devices()[3::-1], fsdp=2, tensor=2)
    assert_same(updated(kind, mesh, parts=2), plain(kind, table=False), atol=1e-5)


def test_parts_are_where_the_rules_say():
    mesh = make_mesh(jax.devices()[:8], fsdp=2, tensor=2)
    state = create_state(*network("policy", table=False), optax.adam(1e-3))
    placed = place_state(state, mesh)
    kernel = placed.params["trunk"]["blocks"]["attn"]["q_proj"]["kernel"]
    assert kernel.shape == (2, 16, 16)
    assert {part.data.shape for part in kernel.addressable_shards} == {(2, 8, 8)}
    moment = placed.opt_state[0].mu["trunk"]["blocks"]["attn"]["q_proj"]["kernel"]
    assert moment.sharding == kernel.sharding
    norm = placed.params["trunk"]["final_norm"]["scale"]
    assert norm.sharding.is_fully_replicated
    assert not state.params["trunk"]["final_norm"]["scale"].is_deleted()


@pytest.fixture
def factored(monkeypatch):
    """An optimiser that keeps means of the toys' matrices, too."""
    monkeypatch.setattr(optim, "LEAST_FACTORED", 8)
    config = OptimConfig(1e-2, eps=1e-3, weight_decay=0.1, moments="factored")
    return make_optimizer(config, 2)


@pytest.mark.parametrize("mesh", ["fsdp", "all", "sequence"])
def test_updates_of_factored_moments_are_those_of_one_device(mesh, factored):
    count, parts, _ = MESHES[mesh]
    mesh = make_mesh(jax.devices()[:count], **parts)
    step, _, batch = task("sft", table=False)
    state = create_state(*network("policy", table=False), factored)
    placed, cut = place_state(state, mesh), place_batch(batch, mesh)
    alone, mapped = jax.jit(step), mesh_parallel(step)
    for _ in range(2):
        state, placed = alone(state, batch)[0], mapped(placed, cut)[0]
    # Not the first moment: rounded to bfloat16, the last bit may turn.
    found, expected = (
        (x.params, *(optax.tree.get(x, name) for name in ("v_row", "v_col", "v")))
        for x in (placed, state)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_means_are_cut_as_what_they_have_of_a_weight(factored):
    """Of [2, 16, 24] the means of rows are [2, 16], those of columns [2, 24]."""
    mesh = make_mesh(jax.devices()[:8], fsdp=2, tensor=4)
    state = create_state(*network("policy", table=False), factored)
    where = state_shardings(state, mesh)

    def spec(name, leaf, tree=where):
        means = optax.tree.get(tree, name)["trunk"]["blocks"]["mlp"][leaf]["kernel"]
        return tuple(means.spec)

    assert spec("v_row", "up_proj") == (None, "fsdp")
    assert spec("v_col", "up_proj") == (None, "tensor")
    # [2, 24, 16]: the first means are over the wider one, whichever that is.
    assert spec("v_row", "down_proj") == (None, "fsdp")
    assert spec("v_col", "down_proj") == (None, "tensor")
    assert spec("v", "up_proj") == ()
    assert spec("v_row", "up_proj", state_shardings(state.opt_state, mesh)) == ()
    square = optax.tree.get(where, "v_col")["trunk"]["blocks"]["attn"]["q_proj"]
    assert tuple(square["kernel"].spec) == (None, "tensor")


def test_weights_are_cut_over_the_devices_of_a_row_too():
    mesh = make_mesh(jax.devices()[:8], fsdp=2, sequence=2)
    placed = place_state(network("policy", table=False)[1], mesh)
    kernel = placed["trunk"]["blocks"]["attn"]["q_proj"]["kernel"]
    assert {part.data.shape for part in kernel.addressable_shards} == {(2, 4, 16)}


def test_every_large_leaf_has_a_rule():
    shapes = jax.eval_shape(lambda: network("critic", table=False)[1])
    placed = state_shardings(shapes, make_mesh(jax.devices()[:8], fsdp=2, tensor=4))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        where = functools.reduce(lambda tree, key: tree[key.key], path, placed)
        if leaf.size > 100:
            assert "fsdp" in where.spec, path


def test_what_is_refused():
    with pytest.raises(UserError, match="fsdp = 2, .* tensor = 2 on 6 devices"):
        make_mesh(jax.devices()[:6], fsdp=2, tensor=2)
    mesh = make_mesh(jax.devices()[:4], fsdp=2)
    with pytest.raises(UserError, match="batch of 6 rows on 4 parts"):
        place_batch(jnp.zeros((6, 2)), mesh)
    batch = pairs()
    with pytest.raises(UserError, match="rows of 8 tokens in 3 parts"):
        place_batch(batch, make_mesh(jax.devices()[:3], sequence=3))
