"""Policies without a network: sampling needs no transformer.

Each one's cache is a count of the tokens read.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.sampling import generate
from rlhf_jax.types import Array, ModelOutput, TokenBatch

sample = jax.jit(generate, static_argnums=0, static_argnames="config")


def _count(batch: TokenBatch, cache: Array | None, cache_size: int | None):
    if cache_size is not None:
        cache = jnp.zeros((), jnp.int32)
    return None if cache is None else cache + batch.tokens.shape[1]


def constant(params, batch: TokenBatch, *, cache=None, cache_size=None):
    """The same distribution for every token: ``params`` are its [V] logits."""
    logits = jnp.broadcast_to(params[None, None], (*batch.tokens.shape, params.size))
    return ModelOutput(logits, cache=_count(batch, cache, cache_size))


def script(params, batch: TokenBatch, *, cache=None, cache_size=None):
    """After the token at position t of row b: surely ``params[b, t]``."""
    chosen = jnp.take_along_axis(params, batch.positions, axis=1)
    logits = 100.0 * jax.nn.one_hot(chosen, 10)
    return ModelOutput(logits, cache=_count(batch, cache, cache_size))


def prompts_of(segments: list[list[int]]) -> TokenBatch:
    """Left-padded prompts of distinct-looking tokens."""
    real = jnp.asarray(segments, jnp.int32)
    tokens = 1 + jnp.arange(real.size, dtype=jnp.int32).reshape(real.shape) % 7
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    return TokenBatch(tokens, real, positions, jnp.zeros(real.shape, bool))
