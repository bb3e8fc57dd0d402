"""The one file that knows about devices: data parallelism by ``jax.pmap``.

A step is written for one device's part of the batch and told the name of the mapped
axis; sums that need the whole batch are taken over that axis inside the step. Trees
that every device holds (states, frozen params) carry a leading device axis
(`replicate`); batches are cut along their first axis (`shard`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.errors import UserError

AXIS = "devices"
Devices = Sequence[Any]  # of jax.Device


def local_devices(count: int | None = None) -> Devices:
    """The first ``count`` devices of this process, or all of them.

    Raises:
      UserError: fewer are there.

    >>> len(local_devices(1))
    1
    """
    devices = jax.local_devices()
    if count is None:
        return devices
    if not 1 <= count <= len(devices):
        raise UserError(
            f"devices = {count}: this process has {len(devices)} "
            f"{devices[0].platform} devices; on CPU set JAX_NUM_CPU_DEVICES={count}"
        )
    return devices[:count]


def replicate(tree: Any, devices: Devices) -> Any:
    """A copy of every leaf on every device, behind a leading device axis.

    A leaf that is in the tree twice, such as the base that policy, reference and reward
    model share, is one copy, too.

    >>> import jax.numpy as jnp
    >>> replicate(jnp.ones(3), local_devices(1)).shape
    (1, 3)
    """
    n, axis = len(devices), _leading_axis(devices)
    copies: dict[int, Any] = {}

    def copy(x):
        if id(x) not in copies:
            wide = jax.numpy.broadcast_to(x, (n, *np.shape(x)))
            copies[id(x)] = jax.device_put(wide, axis)
        return copies[id(x)]

    return jax.tree.map(copy, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of a replicated tree."""
    return jax.tree.map(lambda x: x[0], tree)


def shard(batch: Any, devices: Devices) -> Any:
    """Cuts the leaves' first axis into one piece a device: [B, …] → [N, B/N, …].

    Raises:
      UserError: the batch cannot be cut into equal pieces.

    >>> import jax.numpy as jnp
    >>> shard({"tokens": jnp.ones((4, 2))}, local_devices(1))["tokens"].shape
    (1, 4, 2)
    """
    n = len(devices)

    def cut(x):
        if x.shape[0] % n:
            raise UserError(
                f"batch of {x.shape[0]} rows on {n} devices: expected a multiple of "
                f"{n}; change the batch size or the number of devices"
            )
        return x.reshape(n, x.shape[0] // n, *x.shape[1:])

    return jax.device_put(jax.tree.map(cut, batch), _leading_axis(devices))


def unshard(batch: Any) -> Any:
    """Joins the devices' pieces again: [N, B/N, …] → [B, …]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def data_parallel(
    step: Callable, devices: Devices, *, donate_state: bool = False
) -> Callable:
    """Runs a step on every device, each on its part of the batch.

    Args:
      step: ``(*trees, axis_name=..., key=...)``; keywords other than these are bound
        by ``functools.partial`` beforehand.
      devices: where to run.
      donate_state: the first argument's buffers are reused for the result, and gone.

    Returns:
      ``(*trees, key=None) -> outputs``, trees and outputs with a leading device axis.
      The key is given whole: every device gets the same one.

    >>> import jax.numpy as jnp
    >>> total = lambda x, *, axis_name: jax.lax.psum(x.sum(), axis_name)
    >>> data_parallel(total, local_devices(1))(jnp.ones((1, 4)))
    Array([4.], dtype=float32)
    """
    mapped = jax.pmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        devices=devices,
        donate_argnums=(0,) if donate_state else (),  # by position: keywords donate not
    )

    def call(*trees, key: jax.Array | None = None):
        if key is None:
            return mapped(*trees)
        return mapped(*trees, key=replicate(key, devices))

    return call


def _leading_axis(devices: Devices) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
