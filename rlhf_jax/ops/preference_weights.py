"""Log-probs of pairs in which some tokens, or some pairs, count for less."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.logits import scale_by_temperature
from rlhf_jax.ops.logprobs import align_to_tokens
from rlhf_jax.types import Array


def length_desensitized_logps(
    logprobs: Array, mask: Array, other_mask: Array, *, alpha: float
) -> Array:
    """Σₜ wₜ log πₜ, w = 1 for the first n tokens and α after: n of the shorter side.

    Liu et al. 2024 (LD-DPO), arXiv:2409.06411. To be called for both sides of a pair,
    with the policy's log-probs and with the reference's; α = 1 is DPO.

    Args:
      logprobs: [B, T] float nats of one side of each pair, see ``token_logprobs``.
      mask: [B, T] bool, its tokens; they count from its first True, holes left out.
      other_mask: [B, T'] bool, the tokens of the pair's other side.
      alpha: α, 0 ≤ α ≤ 1: the weight of what the longer side has more.

    Returns:
      [B] float32 nats; 0 for a row without tokens. Masked tokens have no part.

    Raises:
      ValueError: if alpha is out of range.

    >>> mask = jnp.ones((1, 3), bool)
    >>> logprobs = jnp.full((1, 3), -1.0)
    >>> length_desensitized_logps(logprobs, mask, mask[:, :2], alpha=0.5).tolist()
    [-2.5]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"length_desensitized_logps: alpha = {alpha}, expected between 0 and 1"
        )
    chex.assert_rank([logprobs, other_mask], 2)
    chex.assert_equal_shape([logprobs, mask])
    chex.assert_type([mask, other_mask], bool)
    common = jnp.minimum(jnp.sum(mask, axis=1), jnp.sum(other_mask, axis=1))
    weight = jnp.where(jnp.cumsum(mask, axis=1) <= common[:, None], 1.0, alpha)
    logprobs = jnp.where(mask, logprobs, 0.0).astype(jnp.float32)
    return jnp.sum(weight * logprobs, axis=1)


def on_policy_weight(logprobs: Array, log_collision: Array, mask: Array) -> Array:
    """How much a completion is the policy's own: exp meanₜ (log πₜ − log Σᵥ πₜ(v)²).

    Zhou et al. 2024 (WPO), arXiv:2406.11827, eq. 2, aligned by sampling: a completion
    drawn from the policy has about 1. The weight of a pair is the product of the two
    sides', a factor of its loss. No gradient goes through it.

    Args:
      logprobs: [B, T] float nats, of the policy.
      log_collision: [B, T] float nats, see ``token_log_collision``; 0 for the weight
        that is not aligned, the geometric mean of πₜ.
      mask: [B, T] bool, the completion's tokens.

    Returns:
      [B] float32; 0 for a row without tokens. Masked tokens have no part.

    >>> half = jnp.log(jnp.full((1, 2), 0.5))
    >>> on_policy_weight(half, half, jnp.ones((1, 2), bool)).tolist()
    [1.0]
    """
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([logprobs, log_collision, mask])
    chex.assert_type(mask, bool)
    excess = logprobs.astype(jnp.float32) - log_collision.astype(jnp.float32)
    total = jnp.sum(jnp.where(mask, excess, 0.0), axis=1)
    count = jnp.sum(mask, axis=1, dtype=jnp.float32)
    weight = jnp.exp(total / jnp.maximum(count, 1.0))
    return jax.lax.stop_gradient(jnp.where(count > 0, weight, 0.0))


def token_log_collision(logits: Array, *, temperature: float | Array = 1.0) -> Array:
    """Chance that two draws of a token agree: log Σᵥ pᵥ².

    Rényi 1961: minus the entropy of order 2. No arXiv reference.

    Args:
      logits: [B, T, V] float, index t is for the token after t.
      temperature: τ > 0, divides the logits.

    Returns:
      [B, T] float32 nats, index t is about token t; column 0 is 0. No mask: what the
      logits of one token hold reaches only that token's entry.

    Raises:
      ValueError: if a temperature given as a number is not positive.

    >>> collision = token_log_collision(jnp.zeros((1, 2, 4)))
    >>> [round(c, 3) for c in collision[0].tolist()]  # column 0, then log 1/4
    [0.0, -1.386]
    """
    chex.assert_rank(logits, 3)
    chex.assert_type(logits, float)
    logits = scale_by_temperature(logits, temperature)
    square, one = (jax.nn.logsumexp(n * logits, axis=-1) for n in (2.0, 1.0))
    return align_to_tokens(square - 2.0 * one)
