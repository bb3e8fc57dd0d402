"""Scores and the length of a response."""

import chex
import jax.numpy as jnp

from rlhf_jax.types import Array


def overlong_penalty(lengths: Array, *, budget: int, buffer: int) -> Array:
    """Soft punishment of long responses: clip((L_max − L_cache − nᵢ) / L_cache, −1, 0).

    0 up to L_max − L_cache tokens, −1 from L_max on, a straight line between. It is
    added to the score, so that a response is warned before it is cut off.

    Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 13.

    Args:
      lengths: [B] int or float, tokens of each response.
      budget: L_max, the length from which on the penalty is whole.
      buffer: L_cache, 1 to L_max: the last tokens of the budget, over which it grows.

    Returns:
      [B] float32 in score units, −1 to 0. No mask: every row counts.

    Raises:
      ValueError: if buffer is not in 1 … budget.

    >>> overlong_penalty(jnp.array([5, 8, 9, 20]), budget=10, buffer=4).tolist()
    [0.0, -0.5, -0.75, -1.0]
    """
    if not 1 <= buffer <= budget:
        raise ValueError(
            f"overlong_penalty: buffer = {buffer}, expected 1 to {budget}, the budget"
        )
    chex.assert_rank(lengths, 1)
    left = (budget - buffer) - lengths.astype(jnp.float32)
    return jnp.clip(left / buffer, -1.0, 0.0)
