"""Steps over meshes: leaves where their names say, updates those of one device."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from steps.batches import KINDS, assert_same, network, plain, task

from rlhf_jax.errors import UserError
from rlhf_jax.sharding import (
    make_mesh,
    mesh_parallel,
    place_batch,
    place_state,
    state_shardings,
)
from rlhf_jax.steps import create_state

MESHES = {"fsdp": (4, 4, 1), "all": (8, 2, 2)}


def on_mesh(kind, mesh, parts=1):
    step, state, batch = task(kind, parts, table=False)
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
    count, fsdp, tensor = MESHES[mesh]
    mesh = make_mesh(jax.devices()[:count], fsdp=fsdp, tensor=tensor)
    assert_same(on_mesh(kind, mesh), plain(kind, table=False), atol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_micro_batches_and_the_order_of_devices_change_nothing(kind):
    mesh = make_mesh(jax.devices()[3::-1], fsdp=2, tensor=2)
    assert_same(on_mesh(kind, mesh, parts=2), plain(kind, table=False), atol=1e-5)


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


def test_every_large_leaf_has_a_rule():
    shapes = jax.eval_shape(lambda: network("critic", table=False)[1])
    placed = state_shardings(shapes, make_mesh(jax.devices()[:8], fsdp=2, tensor=4))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        where = functools.reduce(lambda tree, key: tree[key.key], path, placed)
        if leaf.size > 100:
            assert "fsdp" in where.spec, path


def test_what_is_refused():
    with pytest.raises(UserError, match="fsdp = 2 and tensor = 2 on 6 devices"):
        make_mesh(jax.devices()[:6], fsdp=2, tensor=2)
    mesh = make_mesh(jax.devices()[:4], fsdp=2)
    with pytest.raises(UserError, match="batch of 6 rows on 4 parts"):
        place_batch(jnp.zeros((6, 2)), mesh)
