"""Epochs and minibatches of a batch of episodes, the same on any number of devices."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

from rlhf_jax.types import Array, Metrics

Tree = TypeVar("Tree", bound=Any)
State = TypeVar("State")


class Passes(Protocol):
    """How often a batch is gone through, and in how many updates each time."""

    @property
    def epochs(self) -> int: ...

    @property
    def minibatches(self) -> int: ...


def in_minibatches(
    update: Callable[[State, Tree], tuple[State, Metrics]],
    state: State,
    experience: Tree,
    *,
    key: Array,
    config: Passes,
    axis_name: str | None,
) -> tuple[State, Metrics]:
    """Epochs × minibatches updates of one batch of episodes, in one scan.

    No reference. Minibatches are drawn from the global batch, each anew in every epoch,
    so that the result does not depend on the number of devices.

    Args:
      update: (state, this device's part of a minibatch) -> (state, global metrics).
      state: before the first update.
      experience: this device's part of the batch, arrays [B, …].
      key: PRNG key of the permutations, the same on every device.
      config: ``epochs`` and ``minibatches``.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The state after the last update, and metrics: over all updates, and ``first/*`` of
      the first alone, where the ratio must still be 1.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts.
    """
    whole = gather(experience, axis_name)
    rows_of = lambda tree: jax.tree.leaves(tree)[0].shape[0]
    index = minibatch_rows(
        key,
        rows_of(whole),
        rows_of(experience),
        epochs=config.epochs,
        minibatches=config.minibatches,
        axis_name=axis_name,
    )
    one = lambda state, rows: update(state, jax.tree.map(lambda x: x[rows], whole))
    state, stacked = jax.lax.scan(one, state, index)
    return state, stacked.collapse() + first_update(stacked)


def gather(experience: Tree, axis_name: str | None) -> Tree:
    """The global batch on every device: a few numbers a token."""
    if axis_name is None:
        return experience
    return jax.lax.all_gather(experience, axis_name, tiled=True)


def minibatch_rows(
    key: Array,
    rows: int,
    rows_here: int,
    *,
    epochs: int,
    minibatches: int,
    axis_name: str | None,
) -> Array:
    """Rows of the global batch that this device takes into each update.

    Every epoch permutes all rows anew and cuts them into minibatches. No reference.

    Args:
      key: PRNG key of the permutations, the same on every device.
      rows: of the global batch.
      rows_here: of this device's part of it.
      epochs: passes over the batch.
      minibatches: updates a pass.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      [epochs · minibatches, rows a device and update] int32.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts.

    >>> options = dict(epochs=1, minibatches=2, axis_name=None)
    >>> index = minibatch_rows(jax.random.key(0), 4, 4, **options)
    >>> index.shape, sorted(index.ravel().tolist())
    ((2, 2), [0, 1, 2, 3])
    """
    devices = rows // rows_here
    if rows % (minibatches * devices):
        raise ValueError(
            f"minibatches = {minibatches} of {rows} episodes on {devices} "
            f"devices: expected episodes a multiple of {minibatches * devices}"
        )
    keys = jax.random.split(key, epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    parts = order.reshape(epochs * minibatches, devices, -1)
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    return parts[:, device]


def first_update(stacked: Metrics) -> Metrics:
    """The first update's ratio statistics: 1, 0 and 0 if sampling and scoring agree.

    A loss without a ratio clips nothing: of that there is no number.
    """
    first = jax.tree.map(lambda x: x[0], stacked)
    names = ("ratio", "approx_kl", "clip_fraction")
    names = [n for n in names if f"policy/{n}" in first.sums]
    return Metrics.of(
        {
            f"first/{n}": (first.sums[f"policy/{n}"], first.counts[f"policy/{n}"])
            for n in names
        },
        maxima={"first/ratio_max": first.maxima["policy/ratio_max"]},
    )
