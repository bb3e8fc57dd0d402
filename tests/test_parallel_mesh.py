"""Parts and rows on a mesh, by the functions that scripts call of devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import parallel, placement
from rlhf_jax.errors import UserError
from rlhf_jax.sharding import make_mesh


def mesh_of(**parts: int):
    return make_mesh(jax.devices()[:4], **parts)


def tree() -> Any:
    """A weight of 8 × 4 numbers, which is there twice, and what is whole."""
    kernel = jnp.arange(32.0).reshape(8, 4)
    twins = {"q_proj": {"kernel": kernel}, "k_proj": {"kernel": kernel}}
    return twins | {"scale": jnp.ones(3), "key": jax.random.key(3)}


def buffers(x: jax.Array) -> list[int]:
    return [part.data.unsafe_buffer_pointer() for part in x.addressable_shards]


@pytest.mark.parametrize(
    "parts, held",
    [({"fsdp": 4}, (2, 4)), ({"fsdp": 2, "tensor": 2}, (4, 2)), ({"fsdp": 2}, (4, 4))],
)
def test_each_device_has_its_part_and_of_what_is_there_twice_one(parts, held):
    whole, mesh = tree(), mesh_of(**parts)
    placed = parallel.replicate(whole, mesh)
    kernel = placed["q_proj"]["kernel"]
    assert {part.data.shape for part in kernel.addressable_shards} == {held}
    np.testing.assert_array_equal(kernel, whole["q_proj"]["kernel"])
    assert buffers(placed["k_proj"]["kernel"]) == buffers(kernel)
    assert len(set(buffers(kernel))) == 4
    assert placed["scale"].sharding.is_fully_replicated
    assert jax.random.bits(placed["key"]) == jax.random.bits(whole["key"])
    assert placement.held_size(whole, mesh) == held[0] * held[1] + 3 + 1


@pytest.mark.parametrize("parts, rows", [({}, 4), ({"fsdp": 2}, 4), ({"tensor": 2}, 2)])
def test_rows_are_cut_over_data_and_fsdp(parts, rows):
    mesh, batch = mesh_of(**parts), np.arange(16).reshape(8, 2)
    placed = parallel.shard({"tokens": batch}, mesh)["tokens"]
    assert parallel.batch_parts(mesh) == rows
    assert placed.shape == (1, 8, 2)
    assert {x.data.shape for x in placed.addressable_shards} == {(1, 8 // rows, 2)}
    np.testing.assert_array_equal(parallel.unshard(placed), batch)
    np.testing.assert_array_equal(parallel.shard(placed[0], mesh), placed)


def test_a_step_sees_the_whole_batch_and_leaves_its_state_in_parts():
    """Twice, compiled once; the key is every device's."""
    mesh, traced = mesh_of(fsdp=2, tensor=2), []

    def step(state, batch, *, key, axis_name):
        traced.append((batch.shape, axis_name))
        drawn = jax.random.uniform(key)
        moved = jax.tree.map(lambda x: x + jnp.mean(batch), state)
        return moved, {"sum": jnp.sum(batch), "drawn": drawn}

    axes = {"in_axes": (None, 0), "out_axes": None}
    mapped = parallel.data_parallel(step, mesh, donate_state=True, **axes)
    whole = {"q_proj": {"kernel": jnp.ones((8, 4))}, "scale": jnp.ones(3)}
    began = state = parallel.replicate(whole, mesh)
    lies = jax.tree.map(lambda x: x.sharding, began)
    batch = parallel.shard(np.arange(16.0).reshape(8, 2), mesh)
    state, _ = mapped(state, batch, key=jax.random.key(1))
    state, found = mapped(state, batch, key=jax.random.key(1))
    assert traced == [((8, 2), None)]
    assert jax.tree.map(lambda x: x.sharding, state) == lies
    assert all(x.is_deleted() for x in jax.tree.leaves(began))
    assert not whole["scale"].is_deleted()
    np.testing.assert_array_equal(state["q_proj"]["kernel"], np.full((8, 4), 16.0))
    assert float(found["sum"]) == 120
    assert found["drawn"] == jax.random.uniform(jax.random.key(1))


def test_rows_come_back_as_rows_beside_what_is_whole():
    mesh = mesh_of(fsdp=4)
    step = lambda batch, *, axis_name: (2 * batch, jnp.sum(batch))
    mapped = parallel.data_parallel(step, mesh, in_axes=(0,), out_axes=(0, None))
    rows, total = mapped(parallel.shard(np.ones((8, 2)), mesh))
    assert {x.data.shape for x in rows.addressable_shards} == {(1, 2, 2)}
    np.testing.assert_array_equal(parallel.unshard(rows), np.full((8, 2), 2.0))
    assert total.sharding.is_fully_replicated and float(total) == 16


def test_what_begins_for_a_mesh_lies_on_the_host(monkeypatch):
    host = jax.devices()[7]
    monkeypatch.setattr(placement, "host_device", lambda: host)
    with parallel.beginning(mesh_of(fsdp=2)):
        assert jnp.ones(3).devices() == {host}
        assert jax.jit(lambda: jnp.ones(3))().devices() == {host}
    with parallel.beginning(parallel.local_devices(2)):
        assert jnp.ones(3).devices() == {jax.devices()[0]}


def test_what_cannot_be_is_said_in_a_line(monkeypatch):
    with pytest.raises(UserError, match="6 rows on 4 parts of a mesh: .* or the mesh"):
        parallel.shard(np.zeros(6), mesh_of(fsdp=2))

    def none(**_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cpu: a model in parts is load"):
        parallel.beginning(mesh_of(fsdp=2))
