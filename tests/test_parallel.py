"""Replicas and shards; the steps' tests show that results do not depend on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    on_one_device,
    replicate,
    shard,
    unshard,
)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_there_and_back(count):
    devices = local_devices(count)
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3)}
    copies = replicate(tree, devices)
    assert copies["w"].shape == (2, 3)
    assert len(copies["w"].addressable_shards) == count
    np.testing.assert_array_equal(copies["w"], tree["w"])
    batch = np.arange(16).reshape(8, 2)
    parts = shard(batch, devices)
    assert parts.shape == (count, 8 // count, 2)
    np.testing.assert_array_equal(unshard(parts), batch)


def test_every_device_gets_the_same_key():
    devices = local_devices(4)
    draw = lambda x, *, key, axis_name: jax.random.normal(key)
    drawn = data_parallel(draw, devices, in_axes=(0,), out_axes=0)(
        shard(jnp.zeros(4), devices), key=jax.random.key(1)
    )
    assert len(set(drawn.tolist())) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_replicas_are_copies(count):
    # Donating the replica of a frozen tree must leave the original alone.
    devices = local_devices(count)
    original = jnp.ones(3)
    copy = replicate(original, devices)
    step = lambda x, batch, *, axis_name: x + 1
    axes = {"in_axes": (None, 0), "out_axes": None}
    step = data_parallel(step, devices, **axes, donate_state=True)
    step(copy, shard(np.zeros(2), devices))
    assert copy.is_deleted() and not original.is_deleted()


@pytest.mark.parametrize("count", [1, 4])
def test_replicas_on_one_device_are_for_computations_with_others(count):
    tree = {"w": jnp.arange(3.0), "key": jax.random.key(3)}
    own = on_one_device(replicate(tree, local_devices(count)))
    assert own["w"].sharding.device_set == {jax.local_devices()[0]}
    other = jax.device_put(jnp.ones(3), jax.local_devices()[0])
    np.testing.assert_array_equal(jax.jit(jnp.add)(own["w"], other), [1, 2, 3])
    assert jax.random.bits(own["key"]) == jax.random.bits(tree["key"])


def test_uneven_batches_and_missing_devices_are_refused():
    with pytest.raises(UserError, match="6 rows on 4 devices"):
        shard(np.zeros(6), local_devices(4))
    with pytest.raises(UserError, match="JAX_NUM_CPU_DEVICES=9"):
        local_devices(9)
