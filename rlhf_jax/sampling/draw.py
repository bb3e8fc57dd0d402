"""From the logits of one step to one token a row, and what is known about it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.ops.logits import (
    min_p_mask,
    scale_by_temperature,
    top_k_mask,
    top_p_mask,
)
from rlhf_jax.sampling.config import SamplingConfig
from rlhf_jax.types import Array

BLOCK = 128  # tokens, among which one is looked for at a time


class Drawn(NamedTuple):
    """Tokens and their log-probs under three distributions, as `Rollout` names them."""

    tokens: Array  # [B] int32
    logprobs: Array  # [B] float32, at the temperature
    raw_logprobs: Array  # [B] float32, the policy's own
    processed_logprobs: Array  # [B] float32, those that were drawn from
    kept: Array | None  # [B, ⌈V/8⌉] uint8, one bit a token


def draw(logits: Array, uniform: Array, config: SamplingConfig) -> Drawn:
    """One token a row by inverse CDF: one uniform number instead of V Gumbel variables.

    No reference.

    Args:
      logits: [B, V] float.
      uniform: [B] float32 in [0, 1).
      config: temperature and truncation.

    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    >>> drawn = draw(logits, jnp.array([0.6]), SamplingConfig(1, top_k=2))
    >>> drawn.tokens.item(), jnp.exp(drawn.processed_logprobs).round(3).item()
    (0, 0.625)
    """
    scaled = scale_by_temperature(logits, config.temperature)
    allowed = truncate(scaled, config)
    largest = jnp.max(allowed, axis=-1, keepdims=True)
    tokens, total = _invert(jnp.exp((allowed - largest).astype(jnp.float32)), uniform)
    chosen = jnp.take_along_axis(allowed - largest, tokens[:, None], axis=-1)[:, 0]
    processed = chosen.astype(jnp.float32) - jnp.log(total)
    logprobs = _logprob(scaled, tokens) if config.truncates else processed
    plain = config.temperature == 1
    kept = jnp.packbits(jnp.isfinite(allowed), axis=-1) if config.keep_sets else None
    return Drawn(
        tokens=tokens,
        logprobs=logprobs,
        raw_logprobs=logprobs if plain else _logprob(logits, tokens),
        processed_logprobs=processed,
        kept=kept,
    )


def _invert(weights: Array, uniform: Array) -> tuple[Array, Array]:
    """(the first token whose cumulative weight exceeds u · total [B], total [B]).

    First among blocks of tokens, then within one: most of a cumulative sum over a
    whole vocabulary nobody looks at. No token of weight 0 is drawn.
    """
    rows, vocab = weights.shape
    weights = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK)))
    blocks = weights.reshape(rows, -1, BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    # The maximum rather than the last entry: a parallel sum need not be monotone.
    total = jnp.max(cumulative, axis=-1)
    threshold = uniform * total
    block = _first_above(cumulative, sums, threshold)
    before = jnp.take_along_axis(cumulative - sums, block[:, None], axis=1)[:, 0]
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token = _first_above(jnp.cumsum(inside, axis=-1), inside, threshold - before)
    return (block * BLOCK + token).astype(jnp.int32), total


def _first_above(cumulative: Array, weights: Array, threshold: Array) -> Array:
    """The first place of a positive weight above the threshold, which there must be."""
    cumulative = jnp.where(weights > 0, cumulative, 0.0)
    # By rounding, a threshold might lie outside what the weights span.
    below = 1 - jnp.finfo(cumulative.dtype).eps
    threshold = jnp.clip(threshold, 0.0, below * jnp.max(cumulative, axis=-1))
    return jnp.argmax(cumulative > threshold[:, None], axis=-1)


def truncate(logits: Array, config: SamplingConfig) -> Array:
    """-inf for tokens that are never drawn: top-k, then top-p, then min-p."""
    if config.top_k is not None:
        logits = top_k_mask(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p_mask(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p_mask(logits, config.min_p)
    return logits


def _logprob(logits: Array, tokens: Array) -> Array:
    """log softmax at one token a row, float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
