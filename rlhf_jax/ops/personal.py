"""One person's reward: the pooled one, and a few numbers of what this person adds."""

import chex
import jax.numpy as jnp

from rlhf_jax.types import Array


def personal_score(
    pooled: Array, features: Array, users: Array, annotator: Array
) -> Array:
    """The score that a user gives: s_u = s̄ + Σₖ w_uk φₖ; s̄ for an unknown user.

    Rewards of a low rank, a basis that all users share and few weights a user, as in
    Bose et al. 2025 (LoRe), arXiv:2504.14439, and Shenfeld et al. 2025 (PReF),
    arXiv:2503.06358. Here the basis has one more member, s̄, whose weight is 1 for
    everybody: of whom nothing is known has that, and w is how a user departs from it.

    Args:
      pooled: [B] float, s̄, the score of everybody together.
      features: [B, R] float, φ, in score units a unit of w.
      users: [U, R] float, w.
      annotator: [B] int, whose score is asked for, 0 … U - 1; negative: unknown; others
        get NaN.

    Returns:
      [B] float32. Features of an unknown user are masked: they may be anything.

    >>> users = jnp.array([[1.0, 0.0], [0.0, -2.0]])
    >>> pooled, features = jnp.full(3, 0.5), jnp.full((3, 2), 1.0)
    >>> personal_score(pooled, features, users, jnp.array([0, 1, -1])).tolist()
    [1.5, -1.5, 0.5]
    """
    chex.assert_rank([pooled, features, users, annotator], [1, 2, 2, 1])
    chex.assert_equal_shape_prefix([pooled, features, annotator], 1)
    chex.assert_equal(features.shape[1], users.shape[1])
    chex.assert_type(annotator, int)
    known = (annotator >= 0)[:, None]
    rows = jnp.where(annotator < 0, 0, annotator)
    weights = jnp.take(users, rows, axis=0, mode="fill", fill_value=jnp.nan)
    weights = jnp.where(known, weights, 0.0).astype(jnp.float32)
    features = jnp.where(known, features, 0.0).astype(jnp.float32)
    return pooled.astype(jnp.float32) + jnp.sum(weights * features, axis=1)
