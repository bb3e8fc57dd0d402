"""The loss that trains a reward model on every step of a solution."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


def process_reward_loss(scores: Array, labels: Array, mask: Array) -> Array:
    """Cross-entropy of a step's being right: −y log σ(s) − (1 − y) log(1 − σ(s)).

    Lightman et al. 2023, arXiv:2305.20050, who predict a label after the last token of
    each step, as one of three words; with a score and a sigmoid, as here: Wang et al.
    2023 (Math-Shepherd), arXiv:2312.08935.

    Args:
      scores: [B, T] float, a logit after each token.
      labels: [B, T] float, int or bool: 1 if the step that ends here is right, 0 if it
        is wrong, or between them the share of solutions that get there from it.
      mask: [B, T] bool, the last token of each step that has a label.

    Returns:
      [B, T] float32 nats a step, 0 where masked; ``masked_mean`` weighs all steps of
      the batch alike.

    >>> scores, right = jnp.zeros((1, 3)), jnp.array([[jnp.nan, 0.0, 1.0]])
    >>> terms = process_reward_loss(scores, right, jnp.array([[False, True, True]]))
    >>> [round(x, 3) for x in terms[0].tolist()]  # log 2 a step
    [0.0, 0.693, 0.693]
    """
    chex.assert_rank([scores, labels, mask], 2)
    chex.assert_equal_shape([scores, labels, mask])
    chex.assert_type(mask, bool)
    scores = jnp.where(mask, scores.astype(jnp.float32), 0.0)
    labels = jnp.where(mask, labels.astype(jnp.float32), 0.0)
    # log(1 + e^s) − y s: no sigmoid that rounds to 0 or 1.
    return jnp.where(mask, jax.nn.softplus(scores) - labels * scores, 0.0)
