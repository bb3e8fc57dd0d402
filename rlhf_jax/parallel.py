"""What scripts know of devices: data parallelism by ``jax.pmap``, or over a mesh.

A step is written for one device's part of the batch and told the name of the mapped
axis, None where a device is alone; sums that need the whole batch are taken over that
axis inside the step. Trees that every device holds whole (states, parameters, metrics)
look as on one device (`replicate`); batches are cut along their first axis, behind a
leading device axis (`shard`).

Where a model does not fit on a device, a mesh (`sharding.make_mesh`) stands in the
place of the devices: states and parameters lie there in parts, rows are cut over some
of its axes, and a step sees the whole batch, without an axis (`placement`).

Of several processes (`processes.initialize`) all make the same calls with the same
values, whole batches too: each puts the rows of its own devices there. The mapping is
``jax.shard_map`` then, which gives the same numbers. What is whole can be read in every
process; what is cut, `unshard` brings to all of them.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax import processes
from rlhf_jax.errors import UserError
from rlhf_jax.placement import (
    jit_on,
    mesh_rows,
    new_on_host,
    place,
    place_parts,
    place_rows,
)

AXIS = "devices"
Devices = Sequence[Any]  # of jax.Device
Where = Devices | Mesh  # each has all of the parameters, or its part of them


def local_devices(count: int | None = None) -> Devices:
    """The first ``count`` devices, or all of them; of several processes, as many each.

    No reference.

    Raises:
      UserError: fewer are there, or processes do not get as many each; or there are
        several processes that have not joined.

    >>> len(local_devices(1))
    1
    """
    n, own = jax.process_count(), jax.local_devices()
    if n > 1 and processes.count() == 1:
        raise UserError(
            f"{n} processes share these {own[0].platform} devices, and this one has "
            f"not joined the others: set {processes.COORDINATOR}={processes.AUTO}"
        )
    if count is None:
        return jax.devices() if n > 1 else own
    if count % n or not 1 <= count // n <= len(own):
        each = "this process has" if n == 1 else f"each of {n} processes has"
        raise UserError(
            f"devices = {count}: {each} {len(own)} {own[0].platform} devices; on CPU "
            f"set JAX_NUM_CPU_DEVICES={max(1, count // n)}"
        )
    if n == 1:
        return own[:count]
    return [d for p in range(n) for d in jax.local_devices(p)[: count // n]]


def batch_parts(where: Where) -> int:
    """Into how many parts devices cut the rows of a batch. No reference.

    >>> batch_parts(local_devices(1))
    1
    """
    return mesh_rows(where) if isinstance(where, Mesh) else len(where)


def beginning(where: Where) -> contextlib.AbstractContextManager[Any]:
    """Where a run's own arrays are made, loaded and restored. No reference.

    For a mesh that is the host's memory, until `replicate` places them in parts: what
    does not fit on a device is never whole on one. Else it is the default device.

    Raises:
      UserError: JAX was told to leave out the host's CPU.

    >>> with beginning(local_devices(1)):
    ...     _ = jnp.ones(3)
    """
    return new_on_host() if isinstance(where, Mesh) else contextlib.nullcontext()


def replicate(tree: Any, devices: Where) -> Any:
    """A copy of every leaf on every device, of the same shape as before.

    No reference.

    On a mesh each device gets its part, by `sharding.RULES`, from the host. A leaf that
    is in the tree twice, such as the base that policy, reference and reward model
    share, is one copy, too.

    >>> import jax.numpy as jnp
    >>> replicate(jnp.ones(3), local_devices(1)).shape
    (3,)
    """
    if isinstance(devices, Mesh):
        return place_parts(tree, devices)
    whole = NamedSharding(_mesh(devices), PartitionSpec())
    copies: dict[int, Any] = {}

    def copy(x):
        if id(x) not in copies:  # of a copy: device_put may hand on what there is
            copies[id(x)] = (
                jax.device_put(jnp.copy(x), whole)
                if processes.count() == 1
                else place(x, whole)
            )
        return copies[id(x)]

    return jax.tree.map(copy, tree)


def shard(batch: Any, devices: Where) -> Any:
    """Cuts the leaves' first axis into one piece a device: [B, …] → [N, B/N, …].

    No reference.

    On a mesh it is [1, B, …], the rows in pieces over its axes data and fsdp.

    Raises:
      UserError: the batch cannot be cut into equal pieces.

    >>> import jax.numpy as jnp
    >>> shard({"tokens": jnp.ones((4, 2))}, local_devices(1))["tokens"].shape
    (1, 4, 2)
    """
    if isinstance(devices, Mesh):
        return place_rows(batch, devices)
    n = len(devices)

    def cut(x):
        if x.shape[0] % n:
            raise UserError(
                f"batch of {x.shape[0]} rows on {n} devices: expected a multiple of "
                f"{n}; change the batch size or the number of devices"
            )
        return x.reshape(n, x.shape[0] // n, *x.shape[1:])

    parts = NamedSharding(_mesh(devices), PartitionSpec(AXIS))
    if processes.count() > 1:
        return jax.tree.map(lambda x: place(cut(np.asarray(x)), parts), batch)
    return jax.device_put(jax.tree.map(cut, batch), parts)


def unshard(batch: Any) -> Any:
    """Joins the devices' pieces again: [N, B/N, …] → [B, …].

    No reference.

    Of several processes each gets the whole as NumPy arrays.
    """
    if processes.count() > 1:
        batch = jax.tree.map(gathered, batch)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def on_one_device(tree: Any) -> Any:
    """What every device holds whole, on the first of this process's own. No reference.

    For computations outside of a step: devices that hold something together compute
    with it together, and with nothing that only one of them has.

    >>> on_one_device(replicate(jnp.ones(3), local_devices(1))).shape
    (3,)
    """

    def own(x: Any) -> Any:
        if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            words = on_one_device(jax.random.key_data(x))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
        return jnp.asarray(np.array(x))

    return jax.tree.map(own, tree)


def gathered(x: Any) -> np.ndarray:
    """An array on the host, whole; of several processes all of them ask for it.

    No reference.

    >>> gathered(jnp.ones(2))
    array([1., 1.], dtype=float32)
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def data_parallel(
    step: Callable,
    devices: Where,
    *,
    in_axes: Any,
    out_axes: Any,
    donate_state: bool = False,
) -> Callable:
    """Runs a step on every device, each on its part of the batch. No reference.

    Args:
      step: ``(*trees, axis_name=..., key=...)``; keywords other than these are bound
        by ``functools.partial`` beforehand. On one device it is jitted, and the name is
        None: mapped, it would copy all gradients to add them up. On a mesh, too: the
        step has the whole batch.
      devices: where to run.
      in_axes: for every tree, None if each device gets it whole (`replicate`), 0 if it
        gets its part (`shard`).
      out_axes: likewise for what the step returns; None only for what is the same on
        every device.
      donate_state: the first argument's buffers are reused for the result, and gone;
        on a mesh that is the first of what the step returns, and lies as it did.

    Returns:
      ``(*trees, key=None) -> outputs``. Every device gets the same key.

    >>> import jax.numpy as jnp
    >>> double = lambda x, *, axis_name: 2 * x
    >>> double = data_parallel(double, local_devices(1), in_axes=(0,), out_axes=0)
    >>> double(jnp.ones((1, 4)))
    Array([[2., 2., 2., 2.]], dtype=float32)
    """
    alone = isinstance(devices, Mesh) or len(devices) == 1

    def call(key, *trees):
        drawn = {} if key is None else {"key": key}
        return step(*trees, axis_name=None if alone else AXIS, **drawn)

    call.__name__ = _name(step)  # what profiles call it
    if isinstance(devices, Mesh):
        whole = _without_axis(call, (None, *in_axes), out_axes)
        options: Any = {"out_axes": out_axes, "donate_state": donate_state}
        mapped = jit_on(whole, devices, **options)
        return lambda *trees, key=None: mapped(key, *trees)
    donated = (1,) if donate_state else ()  # by position: keywords donate not
    if alone:
        whole = _without_axis(call, (None, *in_axes), out_axes)
        mapped = jax.jit(whole, donate_argnums=donated)
    elif processes.count() > 1:
        whole = jax.shard_map(
            _without_axis(call, (None, *in_axes), out_axes),
            mesh=_mesh(devices),
            in_specs=jax.tree.map(_spec, (None, *in_axes), is_leaf=_is_axis),
            out_specs=jax.tree.map(_spec, out_axes, is_leaf=_is_axis),
            check_vma=False,  # as pmap: sums over the devices are the step's own
        )
        mapped = jax.jit(whole, donate_argnums=donated)
        return lambda *trees, key=None: mapped(replicate(key, devices), *trees)
    else:
        mapped = jax.pmap(
            call,
            axis_name=AXIS,
            devices=devices,
            in_axes=(None, *in_axes),
            out_axes=out_axes,
            donate_argnums=donated,
        )
    return lambda *trees, key=None: mapped(key, *trees)


def _without_axis(call: Callable, in_axes: tuple, out_axes: Any) -> Callable:
    """``call`` on one device's part, for trees that have a device axis of 1."""
    drop, add = (lambda x: x[0]), (lambda x: x[None])

    @functools.wraps(call)
    def run(*trees):
        parts = (
            tree if axis is None else jax.tree.map(drop, tree)
            for axis, tree in zip(in_axes, trees, strict=True)
        )
        found = call(*parts)
        if not isinstance(out_axes, tuple):
            return found if out_axes is None else jax.tree.map(add, found)
        return tuple(
            part if axis is None else jax.tree.map(add, part)
            for axis, part in zip(out_axes, found, strict=True)
        )

    return run


def _is_axis(axis: int | None) -> bool:
    return axis is None or axis == 0


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(AXIS)


def _name(step: Callable) -> str:
    while isinstance(step, functools.partial):
        step = step.func
    return getattr(step, "__name__", "step")


def _mesh(devices: Devices) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))
