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
    """A TrainState whose step counter is an array, so that a step compiles once.

    No reference.
    """
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
    """A PolicyState whose counter and coefficient are arrays. No reference."""
    return PolicyState.create(
        apply_fn=apply_fn, params=params, tx=tx, kl_coef=jnp.float32(kl_coef)
    ).replace(step=jnp.zeros((), jnp.int32))


LossFn = Callable[[Params, Any], tuple[Array, Array, Metrics]]


def apply_loss(
    state: State,
    loss_fn: LossFn,
    batch: Any,
    *,
    micro_batches: int = 1,
    axis_name: str | None,
) -> tuple[State, Metrics]:
    """One optimiser update: θ ← θ + tx(∇L(θ)), L = Σᵢ wᵢ ℓᵢ(θ) / Σᵢ wᵢ.

    No reference.

    Gradients of the numerator and the denominators are summed over micro-batches and
    devices, and divided once: into how many parts the batch is cut changes nothing.

    Where L or the norm of its gradient is NaN or infinite, the update is skipped: the
    new state has the parameters and the optimiser state of the old one, byte for byte,
    and counts the step. All devices decide from the same global numbers.

    Args:
      state: before the update.
      loss_fn: (params, part of the batch) -> (Σ wᵢ ℓᵢ, Σ wᵢ, metrics) of that part; the
        weights do not depend on the parameters.
      batch: this device's part of the global batch, cut along its first axis.
      micro_batches: how many parts it is computed in, one after the other: activations
        of one are all there is at a time.
      axis_name: the mapped axis, or None.

    Returns:
      The state after the update, and the metrics of the global batch with
      ``optim/grad_norm`` (of the global gradient, before clipping), ``optim/skipped``
      and ``optim/empty`` (docs/metrics). Those of a skipped update are what they are.
      Without any weight the gradient is 0.

    Raises:
      ValueError: the rows cannot be cut into as many equal parts.
    """
    gradient = jax.value_and_grad(_numerator(loss_fn), has_aux=True)
    if micro_batches == 1:
        (total, (weight, metrics)), grads = gradient(state.params, batch)
    else:

        def add(grads, part):
            found, more = gradient(state.params, part)
            return optax.tree.add(grads, more), found

        zeros = optax.tree.zeros_like(state.params)
        parts = cut(batch, micro_batches)
        grads, (total, (weight, stacked)) = jax.lax.scan(add, zeros, parts)
        total, weight = jnp.sum(total), jnp.sum(weight)
        metrics = stacked.collapse()
    if axis_name is not None:
        grads, weight, total = jax.lax.psum((grads, weight, total), axis_name)
    with jax.named_scope("optimizer"):
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
        grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        # A branch: jnp.where of old and new leaves would copy the old ones.
        state = jax.lax.cond(
            finite,
            lambda state, grads: state.apply_gradients(grads=grads),
            lambda state, grads: state.replace(step=state.step + 1),
            state,
            grads,
        )
    found = {
        "optim/grad_norm": (norm, 1),
        "optim/skipped": (~finite, 1),
        "optim/empty": (weight <= 0, 1),
    }
    return state, metrics.reduce(axis_name) + Metrics.of(found)


def _numerator(loss_fn: LossFn) -> Callable:
    def numerator(params: Params, part: Any):
        total, weight, metrics = loss_fn(params, part)
        return total, (jax.lax.stop_gradient(weight), metrics)

    return numerator


def cut(batch: Any, parts: int) -> Any:
    """[B, …] → [parts, B / parts, …]; rows that are neighbours stay together."""

    def one(x):
        if x.shape[0] % parts:
            raise ValueError(
                f"micro_batches = {parts} of {x.shape[0]} rows on each device: "
                "expected a divisor of the rows"
            )
        return x.reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(one, batch)


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves, arrays or abstract ones."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
