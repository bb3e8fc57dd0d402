"""A reference that follows the policy: TR-DPO and its relatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlhf_jax.steps.state import TrainState
from rlhf_jax.types import Array, Metrics, Params, join_params


@struct.dataclass
class FollowedState:
    """A policy under training, and the reference that follows it."""

    state: TrainState
    ref_params: Params  # of the reference, as far as the policy's are trained


def followed_state(state: TrainState) -> FollowedState:
    """The policy with itself as the reference: a copy, for the state may be donated.

    No reference.
    """
    return FollowedState(state, jax.tree.map(jnp.copy, state.params))


def following_step(
    followed: FollowedState,
    batch: Any,
    frozen: Params | None = None,
    *,
    step: Callable[..., tuple[Any, Metrics]],
    every: int,
    alpha: float,
    axis_name: str | None = None,
    **options: Any,
) -> tuple[FollowedState, Metrics]:
    """An update; after every so many of them, θ_ref ← α θ + (1 − α) θ_ref.

    Gorbatovski et al. 2024 (TR-DPO), arXiv:2404.09656, eq. 5 and 6: the soft update is
    every = 1, α < 1, the hard one α = 1. Of adapters the two matrices are averaged each
    by itself, which is not the average of their product.

    Args:
      followed: policy and reference.
      batch: of the step.
      frozen: parameters that are not trained, of the policy and of the reference.
      step: ``preference_step`` or ``unpaired_step``: (state, batch, reference
        parameters, frozen) -> (state, metrics).
      every: updates between those of the reference, by the state's counter.
      alpha: α, more than 0, at most 1.
      axis_name: the mapped axis over whose devices the batch is spread, or None.
      **options: of the step.

    Returns:
      The new state and reference, and the step's metrics: those of an update against
      the reference before.

    Raises:
      ValueError: ``every`` or ``alpha`` is out of range.
    """
    if every < 1:
        raise ValueError(f"following_step: every = {every}, expected 1 or more")
    if not 0 < alpha <= 1:
        raise ValueError(
            f"following_step: alpha = {alpha}, expected more than 0, at most 1"
        )
    reference = join_params(frozen, followed.ref_params)
    state, metrics = step(
        followed.state, batch, reference, frozen, axis_name=axis_name, **options
    )
    moved = optax.incremental_update(state.params, followed.ref_params, alpha)
    now: Array = state.step % every == 0
    choose = lambda new, old: jnp.where(now, new, old)
    ref_params = jax.tree.map(choose, moved, followed.ref_params)
    return FollowedState(state, ref_params), metrics
