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
    probs = jax.nn.softmax(allowed, axis=-1)
    cumulative = jnp.where(probs > 0, jnp.cumsum(probs, axis=-1), 0.0)
    # The maximum rather than the last entry: a parallel sum need not be monotone, and
    # a threshold above every kept entry would select a token that was excluded.
    total = jnp.max(cumulative, axis=-1)
    tokens = jnp.argmax(cumulative > (uniform * total)[:, None], axis=-1)
    logprobs = _logprob(scaled, tokens)
    plain = config.temperature == 1
    kept = jnp.packbits(jnp.isfinite(allowed), axis=-1) if config.keep_sets else None
    return Drawn(
        tokens=tokens.astype(jnp.int32),
        logprobs=logprobs,
        raw_logprobs=logprobs if plain else _logprob(logits, tokens),
        processed_logprobs=_logprob(allowed, tokens) if config.truncates else logprobs,
        kept=kept,
    )


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
