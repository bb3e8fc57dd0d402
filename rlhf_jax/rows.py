"""Rows [B, T, …], their tokens in one row [N, …], and rows that a mesh cuts.

Which order tokens stand in is nothing to what is computed for each alone. Where the
mesh in use cuts rows (`sharding.make_mesh`), it is: the first parts of all rows, then
the second ones. So a device's tokens are neighbours in [N, …] as they are in [B, T, …].
Without a mesh all of this is a reshape.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlhf_jax.types import Array

SEQUENCE = "sequence"  # the axis of a mesh that cuts rows


def row_parts(tokens: int) -> int:
    """How many parts the mesh in use cuts rows of so many tokens into.

    No reference. 1 where they cannot be of one length.

    >>> row_parts(8)
    1
    """
    parts = jax.sharding.get_abstract_mesh().shape.get(SEQUENCE, 1)
    return 1 if tokens % parts else parts


def join_rows(x: Array) -> Array:
    """[B, T, …] → [N, …], N = B·T. No reference.

    >>> join_rows(jnp.ones((2, 3, 4))).shape
    (6, 4)
    """
    rows, tokens, *rest = x.shape
    parts = row_parts(tokens)
    if parts > 1:
        x = jnp.swapaxes(x.reshape(rows, parts, -1, *rest), 0, 1)
        x = _cut(x, 0)
    return x.reshape(-1, *rest)


def spread(x: Array) -> Array:
    """[N, …], its tokens over all devices of the mesh in use, those of `tensor` too.

    No reference. For products with weights that every device reads whole. x itself
    where there is no mesh of `make_mesh`, or N cannot be cut so.

    >>> spread(jnp.ones(4)).shape
    (4,)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SEQUENCE not in mesh.axis_names or x.shape[0] % mesh.size:
        return x
    first = [SEQUENCE, *(axis for axis in mesh.axis_names if axis != SEQUENCE)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(first)))


def whole_columns(x: Array) -> Array:
    """[D, V], of which the mesh in use cuts D into more parts instead of V.

    No reference. For slices of V that every device reads one after the other: each
    would ask for all that the devices of ``tensor`` hold. x itself where they are one.

    >>> whole_columns(jnp.ones((2, 3))).shape
    (2, 3)
    """
    parts = jax.sharding.get_abstract_mesh().shape
    axes = ("fsdp", SEQUENCE, "tensor")
    if parts.get("tensor", 1) == 1 or x.shape[0] % math.prod(parts[a] for a in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, None))


def split_rows(x: Array, rows: int) -> Array:
    """[N, …] → [B, T, …], of as many rows as `join_rows` had. No reference.

    >>> split_rows(jnp.ones((6, 4)), 2).shape
    (2, 3, 4)
    """
    tokens, rest = x.shape[0] // rows, x.shape[1:]
    parts = row_parts(tokens)
    if parts > 1:
        x = _cut(x.reshape(parts, rows, -1, *rest), 0)
        x = jnp.swapaxes(x, 0, 1)
    return x.reshape(rows, tokens, *rest)


def take_columns(x: Array, at: Array) -> Array:
    """[B, T, …] → [B, S, …]: of each row the entries at its columns. No reference.

    Args:
      x: [B, T, …].
      at: [B, S] int32, 0 … T − 1.

    >>> take_columns(jnp.array([[5, 6, 7]]), jnp.array([[2, 0]])).tolist()
    [[7, 5]]
    """
    at = at.reshape(*at.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, at, axis=1)


def to_blocks(x: Array, widths: Sequence[int]) -> tuple[Array, ...]:
    """[B, T, …] → blocks of so many tokens of all rows, each [B, Q, …].

    No reference. Of cut rows every block is in as many parts as a row: each device has
    a share of the first block's tokens, of the second's, … . Widths are then equal.

    >>> [block.shape for block in to_blocks(jnp.ones((2, 5)), (3, 2))]
    [(2, 3), (2, 2)]
    """
    rows, tokens, *rest = x.shape
    if row_parts(tokens) == 1:
        return tuple(jnp.split(x, list(accumulate(widths))[:-1], axis=1))
    x = _cut(x.reshape(rows, len(widths), widths[0], *rest), 2)
    return tuple(x[:, block] for block in range(len(widths)))


def from_blocks(blocks: Sequence[Array]) -> Array:
    """[B, T, …] of the blocks of `to_blocks`. No reference.

    >>> from_blocks([jnp.ones((2, 3)), jnp.ones((2, 2))]).shape
    (2, 5)
    """
    rows, _, *rest = blocks[0].shape
    tokens = sum(block.shape[1] for block in blocks)
    if row_parts(tokens) == 1:
        return jnp.concatenate(blocks, axis=1)
    # Whole blocks are parts of T, shares of each are not: devices change them.
    x = _cut(jnp.stack(blocks, axis=1), 1 if len(blocks) > 1 else 2)
    return x.reshape(rows, tokens, *rest)


@jax.custom_vjp
def gather(x: Array) -> Array:
    """[B, T, …] of cut rows, whole on each of their devices. No reference.

    Of its gradient, which all of them give, each gets the sum for its own tokens.
    """
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(
        x, PartitionSpec(PartitionSpec.UNCONSTRAINED, None, *free)
    )


gather.defvjp(lambda x: (gather(x), None), lambda _, by_x: (_cut(by_x, 1),))


def _cut(x: Array, axis: int) -> Array:
    """x with this axis in parts over the devices of a row."""
    where: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    where[axis] = SEQUENCE
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*where))
