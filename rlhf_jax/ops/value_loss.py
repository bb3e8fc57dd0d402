"""The critic's loss and how good the critic is."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.masking import masked_mean, masked_sum
from rlhf_jax.types import Array, Metrics


def value_loss(
    values: Array,
    old_values: Array,
    returns: Array,
    mask: Array,
    *,
    clip_eps: float | None = 0.2,
) -> tuple[Array, Metrics]:
    """Clipped squared error: Lₜ = ½ max((Vₜ − Rₜ)², (clip(Vₜ, V_old,ₜ ± ε) − Rₜ)²).

    Ziegler et al. 2019, arXiv:1909.08593; introduced by the PPO code of OpenAI
    baselines.

    Args:
      values: [B, T] float, of the critic being trained.
      old_values: [B, T] float, of the critic that saw the rollout.
      returns: [B, T] float, the target.
      mask: [B, T] bool, the policy's tokens.
      clip_eps: ε in units of value; None: no clipping.

    Returns:
      terms: [B, T] float32, 0 where masked; reduce them with ``masked_mean``.
      metrics: means over unmasked tokens: ``value/loss``, ``value/clip_fraction``
        (clipping raised the loss), ``value/mean`` and ``value/error`` ((V − R)²).

    >>> values, old_values, returns = jnp.array([[[3.0]], [[0.0]], [[4.0]]])
    >>> mask = jnp.array([[True]])
    >>> terms, _ = value_loss(values, old_values, returns, mask, clip_eps=1.0)
    >>> terms.tolist()  # ½ max((3 - 4)², (1 - 4)²)
    [[4.5]]
    """
    chex.assert_rank([values, old_values, returns, mask], 2)
    chex.assert_equal_shape([values, old_values, returns, mask])
    chex.assert_type(mask, bool)
    values, old_values, returns = (
        jnp.where(mask, x, 0.0).astype(jnp.float32)
        for x in (values, old_values, returns)
    )
    error = jnp.square(values - returns)
    worse = error
    if clip_eps is not None:
        near = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
        worse = jnp.maximum(error, jnp.square(near - returns))
    terms = 0.5 * worse
    means = {
        "value/loss": terms,
        "value/clip_fraction": (worse > error).astype(jnp.float32),
        "value/mean": values,
        "value/error": error,
    }
    return terms, Metrics.of({k: masked_sum(x, mask) for k, x in means.items()})


def explained_variance(
    values: Array, returns: Array, mask: Array, *, axis_name: str | None = None
) -> Array:
    """Share of the returns' variance that the critic explains: 1 − Var(R − V)/Var(R).

    No reference. 1 is a perfect critic, 0 a constant one, below 0 worse than that.

    Args:
      values: [B, T] float.
      returns: [B, T] float.
      mask: [B, T] bool, the policy's tokens.
      axis_name: the mapped axis whose devices share the variances, or None.

    Returns:
      float32 scalar; 0 if the returns do not vary, or all is masked.

    >>> values, returns = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0.0, 2.0, 4.0]])
    >>> float(explained_variance(values, returns, jnp.full((1, 3), True)))
    0.75
    """
    chex.assert_rank([values, returns, mask], 2)
    chex.assert_equal_shape([values, returns, mask])
    chex.assert_type(mask, bool)
    values, returns = values.astype(jnp.float32), returns.astype(jnp.float32)
    total = _variance(returns, mask, axis_name)
    unexplained = _variance(returns - values, mask, axis_name)
    varies = total > 0.0
    share = 1.0 - unexplained / jnp.where(varies, total, 1.0)
    return jnp.where(varies, share, 0.0)


def _variance(x: Array, mask: Array, axis_name: str | None) -> Array:
    """Biased variance of the unmasked entries, exactly 0 if they are all equal."""
    # A mean rounds, so that equal entries would differ from it: subtract one first.
    # It cancels out, and pmax has no derivative: none is taken.
    top = jax.lax.stop_gradient(jnp.max(jnp.where(mask, x, -jnp.inf)))
    if axis_name is not None:
        top = jax.lax.pmax(top, axis_name)
    x = jnp.where(mask, x - top, 0.0)
    mean = masked_mean(x, mask, axis_name=axis_name)
    return masked_mean(jnp.square(x - mean), mask, axis_name=axis_name)
