"""What `parallel` does on a mesh: trees in parts, rows cut, one program for all.

A tree comes from the host's memory and goes to each device part by part, so that what
no device holds is never whole on one. Several processes have the same values, and each
places the parts of its own devices.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.errors import UserError
from rlhf_jax.sharding import DATA, FSDP, ROWS, on_mesh, state_shardings


def host_device() -> Any:
    """The device whose memory is the host's: this process's first CPU. No reference.

    Raises:
      UserError: JAX was told to leave it out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platform = jax.default_backend()
        raise UserError(
            f"JAX_PLATFORMS={platform}: a model in parts is loaded on the host: "
            f"expected JAX_PLATFORMS={platform},cpu, or none"
        ) from error


def new_on_host() -> contextlib.AbstractContextManager[Any]:
    """Within it, what is made, loaded or restored lies on the host. No reference."""
    return jax.default_device(host_device())


def place(x: Any, where: NamedSharding) -> Any:
    """Each process puts its devices' parts of what all have; nothing is sent.

    No reference.
    """
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = place(jax.random.key_data(x), where)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    host = np.asarray(jnp.asarray(x) if np.isscalar(x) else x)
    # A copy for each device: of one buffer on several none may be donated.
    part = lambda index: np.array(host[index])
    return jax.make_array_from_callback(host.shape, where, part)


def place_parts(tree: Any, mesh: Mesh) -> Any:
    """Each leaf where `state_shardings` says; one that is there twice is placed once.

    No reference.

    >>> from rlhf_jax.sharding import make_mesh
    >>> place_parts({"b": jnp.ones(3)}, make_mesh(jax.devices()[:1]))["b"].shape
    (3,)
    """
    placed: dict[int, Any] = {}

    def once(x: Any, where: NamedSharding) -> Any:
        if id(x) not in placed:
            placed[id(x)] = place(x, where)
        return placed[id(x)]

    return jax.tree.map(once, tree, state_shardings(tree, mesh))


def mesh_rows(mesh: Mesh) -> int:
    """Into how many parts a mesh cuts the rows of a batch. No reference."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def place_rows(batch: Any, mesh: Mesh) -> Any:
    """[B, …] → [1, B, …], the rows over data and fsdp. No reference.

    Raises:
      UserError: the rows cannot be cut into equal parts.
    """
    n, where = mesh_rows(mesh), NamedSharding(mesh, PartitionSpec(None, ROWS))

    def cut(x: Any) -> Any:
        if x.shape[0] % n:
            raise UserError(
                f"batch of {x.shape[0]} rows on {n} parts of a mesh: expected a "
                f"multiple of {n}; change the batch size, the number of devices or "
                "the mesh"
            )
        return place(np.asarray(x)[None], where)

    return jax.tree.map(cut, batch)


def held_size(tree: Any, mesh: Mesh) -> int:
    """Numbers that each device holds of a tree; a leaf that is there twice is one.

    No reference.
    """
    where = jax.tree.leaves(state_shardings(tree, mesh))
    sizes = {
        id(x): int(np.prod(part.shard_shape(np.shape(x))))
        for x, part in zip(jax.tree.leaves(tree), where, strict=True)
    }
    return sum(sizes.values())


def jit_on(
    call: Callable, mesh: Mesh, *, out_axes: Any, donate_state: bool
) -> Callable:
    """``call(key, *trees)`` as one program for all devices of a mesh. No reference.

    Args:
      call: takes and returns whole trees, and batches [1, B, …].
      mesh: of `make_mesh`.
      out_axes: of `data_parallel`: None for what each device shall have whole, 0 for
        rows.
      donate_state: the first tree is a state, reused for the first that ``call``
        returns, which lies as it did.
    """
    rows = NamedSharding(mesh, PartitionSpec(None, ROWS))
    whole = NamedSharding(mesh, PartitionSpec())
    is_axis = lambda axis: axis is None or axis == 0
    out = jax.tree.map(
        lambda axis: whole if axis is None else rows, out_axes, is_leaf=is_axis
    )
    compiled: dict[Any, Callable] = {}

    def run(key: Any, *trees: Any) -> Any:
        lies = jax.tree.map(lambda x: x.sharding, trees[0]) if donate_state else None
        known = tuple(jax.tree.leaves(lies))
        if known not in compiled:
            compiled[known] = jax.jit(
                on_mesh(call, mesh),
                out_shardings=(lies, out) if donate_state else out,
                donate_argnums=(1,) if donate_state else (),
            )
        return compiled[known](None if key is None else place(key, whole), *trees)

    return run
