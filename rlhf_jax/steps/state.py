"""Train states, and the one way in which a loss changes them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from rlhf_jax.types import Array, Metrics, Params


class TrainState(train_state.TrainState):
    """flax's TrainState, its parameters any pytree.

    ``apply_fn`` is the network (an `ApplyFn` or a `ScoreFn`), ``tx`` the optimiser.
    """

    params: Params


State = TypeVar("State", bound=TrainState)


class PolicyState(TrainState):
    """A TrainState with the KL coefficient, which may adapt from update to update."""

    kl_coef: Array  # float32 scalar


def create_state(
    apply_fn: Callable, params: Params, tx: optax.GradientTransformation
) -> TrainState:
    """A TrainState whose step counter is an array, so that a step compiles once."""
    return TrainState.create(apply_fn=apply_fn, params=params, tx=tx).replace(
        step=jnp.zeros((), jnp.int32)
    )


def create_policy_state(
    apply_fn: Callable,
    params: Params,
    tx: optax.GradientTransformation,
    *,
    kl_coef: float,
) -> PolicyState:
    """A PolicyState whose counter and coefficient are arrays."""
    return PolicyState.create(
        apply_fn=apply_fn, params=params, tx=tx, kl_coef=jnp.float32(kl_coef)
    ).replace(step=jnp.zeros((), jnp.int32))


def apply_loss(
    state: State,
    loss_fn: Callable[[Params], tuple[Array, Metrics]],
    *,
    axis_name: str | None,
) -> tuple[State, Metrics]:
    """One optimiser update: θ ← θ + tx(∇L(θ)).

    Args:
      state: before the update.
      loss_fn: params -> (loss, metrics). The loss is the mean over the global batch
        (`masked_mean` with ``axis_name``), the metrics are this device's.
      axis_name: the mapped axis, or None.

    Returns:
      The state after the update, and the metrics of the global batch with
      ``optim/grad_norm`` (of the global gradient, before clipping).
    """
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    if axis_name is not None:
        # The transpose of psum under pmap is psum: each device's gradient is that of
        # N copies of the loss, and their mean is the gradient of one.
        grads = jax.lax.pmean(grads, axis_name)
    norm = Metrics.of({"optim/grad_norm": (optax.tree.norm(grads), 1)})
    return state.apply_gradients(grads=grads), metrics.reduce(axis_name) + norm


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves, arrays or abstract ones."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
