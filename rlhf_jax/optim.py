"""Optimisers and learning-rate schedules: optax, with the field's usual settings."""

import dataclasses
from typing import Literal

import jax
import optax

from rlhf_jax.errors import UserError
from rlhf_jax.types import Params


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam with a schedule."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How it falls from the peak to 0 at the last update; constant keeps it."""
    warmup: int = 0
    """Updates over which it rises from 0 to the peak."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's ε, outside the root and after bias correction, as PyTorch has it."""
    moments: Literal["float32", "bfloat16", "factored"] = "float32"
    """What Adam keeps of its moments, 8, 6 or 2 bytes a parameter: both in float32; the
    first in bfloat16; that, and of the second the means of a matrix's rows and columns
    (no first one where b1 is 0)."""
    weight_decay: float = 0.0
    """Decoupled weight decay, of everything but norm scales, biases and gains."""
    max_grad_norm: float | None = None
    """Clips the global gradient norm; none leaves gradients as they are."""

    def __post_init__(self):
        if self.learning_rate < 0:
            raise UserError(f"learning_rate = {self.learning_rate}: expected 0 or more")
        if self.warmup < 0:
            raise UserError(f"warmup = {self.warmup}: expected 0 updates or more")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(
                f"max_grad_norm = {self.max_grad_norm}: expected a positive number, "
                "or none for no clipping"
            )


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Warm-up from 0 to the peak, then constant, linear or cosine decay to 0.

    No reference.

    Args:
      config: peak, warm-up and shape.
      total_steps: optimiser updates in all.

    Returns:
      A function from the number of updates done to the learning rate.

    >>> schedule = learning_rate_schedule(OptimConfig(learning_rate=1.0, warmup=2), 6)
    >>> [float(schedule(step)) for step in (0, 1, 2, 4, 6)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    peak, decay_steps = config.learning_rate, max(total_steps - config.warmup, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
    }[config.schedule]
    if config.warmup == 0:
        return decay
    rise = optax.linear_schedule(0.0, peak, config.warmup)
    return optax.join_schedules([rise, decay], [config.warmup])


def make_optimizer(
    config: OptimConfig, total_steps: int
) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980) with decoupled decay (arXiv:1711.05101) and clipping.

    With factored moments the second is Adafactor's (arXiv:1804.04235), rᵢ·cⱼ / mean r
    of the means r of rows and c of columns of g² + ε², and the first one is taken of
    g / √v, as in Zhai et al. 2022, arXiv:2106.04560. Decays and corrections are Adam's.

    Args:
      config: the settings.
      total_steps: optimiser updates in all, which the schedule ends at.

    Returns:
      An optax gradient transformation.

    >>> import jax.numpy as jnp
    >>> tx = make_optimizer(OptimConfig(learning_rate=0.1, schedule="constant"), 1)
    >>> params = {"kernel": jnp.zeros(1)}
    >>> grads = {"kernel": jnp.ones(1)}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> round(float(updates["kernel"][0]), 5)
    -0.1
    """
    adam = optax.chain(
        _scale_by_moments(config),
        optax.add_decayed_weights(config.weight_decay, _decayed),
        optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps)),
    )
    if config.max_grad_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)


# Least width of a matrix that is kept as means, optax's. Layers are stacked, and fewer
# than that many are no width of a matrix.
LEAST_FACTORED = 128


def _scale_by_moments(config: OptimConfig) -> optax.GradientTransformation:
    if config.moments != "factored":
        first = None if config.moments == "float32" else "bfloat16"
        return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=first)
    # Adam's correction of v for its start at 0, as a decay: 1804.04235, section 7.1.
    corrected = lambda step, b2: b2 * (1 - b2**step) / (1 - b2 ** (step + 1))
    second = optax.scale_by_factored_rms(
        decay_rate=config.b2,
        min_dim_size_to_factor=LEAST_FACTORED,
        epsilon=config.eps**2,
        decay_rate_fn=corrected,
    )
    if config.b1 == 0:
        return second
    return optax.chain(second, optax.ema(config.b1, accumulator_dtype="bfloat16"))


def make_tunable_optimizer(
    config: OptimConfig, total_steps: int
) -> optax.GradientTransformation:
    """`make_optimizer` with the peak learning rate in its state, as an array.

    No reference. Updates are the rate times those at rate 1, so that the members of a
    population under ``jax.vmap`` may each have a rate of its own.

    Args:
      config: the settings; ``learning_rate`` is what the state begins with.
      total_steps: optimiser updates in all, which the schedule ends at.

    Returns:
      An optax gradient transformation; ``optax.tree.set(state, learning_rate=...)``
      sets the rate.

    >>> import jax.numpy as jnp
    >>> tx = make_tunable_optimizer(OptimConfig(schedule="constant"), 1)
    >>> params = {"kernel": jnp.zeros(1)}
    >>> state = optax.tree.set(tx.init(params), learning_rate=jnp.float32(0.1))
    >>> updates, _ = tx.update({"kernel": jnp.ones(1)}, state, params)
    >>> round(float(updates["kernel"][0]), 5)
    -0.1
    """
    at_one = make_optimizer(dataclasses.replace(config, learning_rate=1.0), total_steps)
    scaled = optax.inject_hyperparams(lambda learning_rate: optax.scale(learning_rate))
    return optax.chain(at_one, scaled(learning_rate=config.learning_rate))


def _decayed(params: Params) -> Params:
    """True for the leaves that weight decay applies to.

    By name, not by rank: the scales of stacked layers are matrices, too.
    """
    exempt = {"scale", "bias", "gain", "offset"}
    name = lambda path: jax.tree_util.keystr(path[-1:], simple=True)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: name(path) not in exempt, params
    )
