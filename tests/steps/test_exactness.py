"""Into how many parts an update is cut, and how rows are filled, changes nothing.

Devices, `parallel` or a mesh, micro-batches, packed rows: gradients are those of one
plain batch of rows of their own on one device.
"""

import chex
import jax
import pytest
from steps.batches import KINDS, RELATIVES, assert_same, plain, task

from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.sharding import make_mesh, mesh_parallel, place_batch, place_state

# (devices, how, micro-batches): every number with every other, not all three crossed.
CUTS = (
    (1, "pmap", 4),
    (2, "pmap", 2),
    (4, "pmap", 4),
    (8, "pmap", 1),
    (2, "mesh", 4),
    (4, "mesh", 2),
    (8, "mesh", 1),
)
PACKED = ((4, "pmap", 2), (8, "mesh", 1))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Most of the time goes there; what runs once need not run fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def on_devices(cut, kind, **options):
    """(parameters, metrics) after an update on the first devices, in so many parts."""
    count, how, parts = cut
    step, state, batch = task(kind, parts, **options)
    if how == "mesh":
        return on_mesh(make_mesh(jax.devices()[:count]), step, state, batch)
    devices = local_devices(count)
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=None)
    after, metrics = mapped(replicate(state, devices), shard(batch, devices))
    return after.params, metrics.compute()


def on_mesh(mesh, step, state, batch):
    after, metrics = mesh_parallel(step)(
        place_state(state, mesh), place_batch(batch, mesh)
    )
    return after.params, metrics.compute()


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cuts_change_nothing(kind, cut):
    assert_same(on_devices(cut, kind), plain(kind))


@pytest.mark.parametrize("cut", [(2, "pmap", 2), (4, "mesh", 1)], ids=str)
def test_cuts_of_rankings_change_nothing(cut):
    assert_same(on_devices(cut, "ranking"), plain("ranking"))


@pytest.mark.parametrize("kind", RELATIVES)
def test_relatives_of_grpo(kind):
    """Two devices, two parts each; packed rows: gradients of a plain batch."""
    cut = (2, "pmap", 2)
    assert_same(on_devices(cut, kind), plain(kind))
    found = on_devices(cut, kind, table=False, packed=True)
    assert_same(found, plain(kind, table=False), atol=1e-5)


@pytest.mark.parametrize("cut", PACKED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_change_nothing(kind, cut):
    """A transformer, which would see the neighbours; the last row is empty."""
    found = on_devices(cut, kind, table=False, packed=True)
    assert_same(found, plain(kind, table=False), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_devices_changes_nothing(kind):
    devices = jax.devices()
    meshes = (
        make_mesh([devices[i] for i in order]) for order in ((0, 1, 2, 3), (2, 0, 3, 1))
    )
    one, other = (on_mesh(mesh, *task(kind)) for mesh in meshes)
    chex.assert_trees_all_equal(one, other)
