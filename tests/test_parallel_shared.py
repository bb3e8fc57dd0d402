"""A leaf that is in a tree twice is on every device once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.parallel import local_devices, replicate


def buffers(x: jax.Array) -> list[int]:
    """Where each device has its copy."""
    return [part.data.unsafe_buffer_pointer() for part in x.addressable_shards]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_shared_leaf_is_one_copy(count):
    base = {"w": jnp.arange(6.0).reshape(2, 3)}
    tree = {"policy": base, "reward": {"trunk": base}, "again": [base["w"]]}
    copies = replicate(tree, local_devices(count))
    first = copies["policy"]["w"]
    for twin in (copies["reward"]["trunk"]["w"], copies["again"][0]):
        assert buffers(twin) == buffers(first)
    assert len(set(buffers(first))) == count
    for part in first.addressable_shards:
        np.testing.assert_array_equal(part.data, base["w"])


def test_equal_leaves_that_are_not_the_same_stay_apart():
    devices = local_devices(2)
    x = jnp.ones((2, 3))
    copies = replicate({"a": x, "b": jnp.array(x), "c": np.ones((2, 3))}, devices)
    found = [pointer for name in "abc" for pointer in buffers(copies[name])]
    assert len(set(found)) == 6
