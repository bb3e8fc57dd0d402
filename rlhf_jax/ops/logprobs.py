"""From logits to what they say about tokens; home of the one-step shift."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.logits import scale_by_temperature
from rlhf_jax.types import Array


def align_to_tokens(x: Array) -> Array:
    """Moves what a model says at index t (having read token t) to token t + 1.

    yₜ = xₜ₋₁, y₀ = 0. No reference. The only place with the shift between a model's
    outputs and the tokens that they speak about.

    Args:
      x: [B, T, ...] of any dtype, index t is about the token after t.

    Returns:
      [B, T, ...] of x's dtype, index t is about token t; column 0 is 0. No mask: the
      last column of x is about a token that does not exist, and is dropped.

    >>> align_to_tokens(jnp.array([[1.0, 2.0, 3.0]])).tolist()
    [[0.0, 1.0, 2.0]]
    """
    return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def token_logprobs(
    logits: Array, tokens: Array, *, temperature: float | Array = 1.0
) -> Array:
    """Log-probability of each token: log πₜ = zₜ₋₁[xₜ]/τ − log Σᵥ exp(zₜ₋₁[v]/τ).

    No reference. Keeps no [B, T, V] array of log-probs.

    Args:
      logits: [B, T, V] float, index t is for the token after t.
      tokens: [B, T] int, in 0 … V - 1; ids outside get NaN.
      temperature: τ > 0, divides the logits.

    Returns:
      [B, T] float32 nats, index t is about token t; column 0 is 0. No mask: what the
      logits of one token hold reaches only that token's entry.

    Raises:
      ValueError: if a temperature given as a number is not positive.

    >>> logits = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5]]]))
    >>> logprobs = token_logprobs(logits, jnp.array([[0, 1]]))
    >>> logprobs.shape, round(jnp.exp(logprobs[0, 1]).item(), 3)
    ((1, 2), 0.75)
    """
    chex.assert_rank([logits, tokens], [3, 2])
    chex.assert_equal_shape_prefix([logits, tokens], 2)
    chex.assert_type([logits, tokens], [float, int])
    logits = scale_by_temperature(logits, temperature)
    next_tokens = jnp.roll(tokens, -1, axis=1)
    # Negative ids would count from the end of the vocabulary; V is outside it.
    next_tokens = jnp.where(next_tokens < 0, logits.shape[-1], next_tokens)
    chosen = jnp.take_along_axis(logits, next_tokens[..., None], axis=-1)[..., 0]
    return align_to_tokens(chosen - jax.nn.logsumexp(logits, axis=-1))


def token_entropy(logits: Array, *, temperature: float | Array = 1.0) -> Array:
    """Entropy of the distribution that each token was drawn from: −Σᵥ pᵥ log pᵥ.

    Shannon 1948; no arXiv reference. Entries of -inf (truncated tokens) have p = 0 and
    count as 0.

    Args:
      logits: [B, T, V] float, index t is for the token after t.
      temperature: τ > 0, divides the logits.

    Returns:
      [B, T] float32 nats, index t is about token t; column 0 is 0. No mask: what the
      logits of one token hold reaches only that token's entry.

    Raises:
      ValueError: if a temperature given as a number is not positive.

    >>> entropy = token_entropy(jnp.zeros((1, 2, 4)))
    >>> [round(h, 3) for h in entropy[0].tolist()]  # column 0, then log 4
    [0.0, 1.386]
    """
    chex.assert_rank(logits, 3)
    chex.assert_type(logits, float)
    logits = scale_by_temperature(logits, temperature)
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    surprise = jnp.where(jnp.isneginf(logits), 0.0, logprobs)  # 0 · ∞ counts as 0
    return align_to_tokens(-jnp.sum(jnp.exp(logprobs) * surprise, axis=-1))
