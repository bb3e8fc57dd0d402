"""Several reward models as one reward, and how far they disagree."""

from typing import Literal

import chex
import jax.numpy as jnp

from rlhf_jax.types import Array

EnsembleKind = Literal["mean", "minimum", "mean_minus_std", "mean_minus_variance"]


def ensemble_reward(
    scores: Array, *, kind: EnsembleKind = "mean", coef: float = 1.0
) -> Array:
    """One reward of M models' scores: μ, minₘ sₘ, μ − c·σ or μ − c·σ².

    Mean and μ − σ: Eisenstein et al. 2023, arXiv:2312.09244. Minimum (worst case) and
    μ − c·σ² (uncertainty-weighted): Coste et al. 2023, arXiv:2310.02743. Here as there,
    σ² = Σₘ (sₘ − μ)²/M. The models' scores must be on one scale, see
    ``rewards.normalize_scores``.

    Args:
      scores: [M, B] float, a row a model.
      kind: how they are combined.
      coef: c, of the deviation (no unit) or of the variance (1/score).

    Returns:
      [B] float32. No mask: columns are independent of one another.

    Raises:
      ValueError: if kind is unknown.

    >>> scores = jnp.array([[1.0], [3.0]])  # μ = 2, σ = 1
    >>> ensemble_reward(scores, kind="mean_minus_std", coef=0.5).tolist()
    [1.5]
    """
    chex.assert_rank(scores, 2)
    scores = scores.astype(jnp.float32)
    match kind:
        case "mean":
            return jnp.mean(scores, axis=0)
        case "minimum":
            return jnp.min(scores, axis=0)
        case "mean_minus_std":
            return jnp.mean(scores, axis=0) - coef * ensemble_disagreement(scores)
        case "mean_minus_variance":
            return jnp.mean(scores, axis=0) - coef * jnp.var(scores, axis=0)
        case _:
            raise ValueError(
                f"ensemble_reward: kind = {kind!r}, expected mean, minimum, "
                "mean_minus_std or mean_minus_variance"
            )


def ensemble_disagreement(scores: Array) -> Array:
    """How far M models differ: their standard deviation σ = √(Σₘ (sₘ − μ)²/M).

    Coste et al. 2023, arXiv:2310.02743. Where it grows during training, the policy has
    left what the models were trained on.

    Args:
      scores: [M, B] float, a row a model.

    Returns:
      [B] float32 in score units. No mask: columns are independent of one another. Where
      all models agree the gradient is 0.

    >>> ensemble_disagreement(jnp.array([[1.0, 2.0], [3.0, 2.0]])).tolist()
    [1.0, 0.0]
    """
    chex.assert_rank(scores, 2)
    variance = jnp.var(scores.astype(jnp.float32), axis=0)
    differ = variance > 0
    return jnp.where(differ, jnp.sqrt(jnp.where(differ, variance, 1.0)), 0.0)
