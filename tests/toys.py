"""Networks small enough to reason about: what tests use in place of a transformer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.rows import take_columns
from rlhf_jax.types import Array, ModelOutput, Params, TokenBatch


class Nothing(NamedTuple):
    """A cache of what a table needs to know of the tokens before the last one."""

    def share(self, times: int, columns: int) -> "Nothing":
        return self


def tabular_policy(params: Params, batch: TokenBatch, *, cache=None, cache_size=None):
    """π(token | last token) from ``logits`` [V, V], V(token) from ``values`` [V]."""
    logits = params["logits"][batch.tokens]
    values = params["values"][batch.tokens]
    cache = cache if cache_size is None else Nothing()
    return ModelOutput(logits=logits, values=values, cache=cache)


def tabular_params(key: Array, vocab: int) -> Params:
    return {
        "logits": jax.random.normal(key, (vocab, vocab)),
        "values": jnp.zeros(vocab),
    }


def tabular_score(
    params: Params, batch: TokenBatch, *, at: Array | None = None
) -> Array:
    """[B, T, N] scores that only depend on the token read: ``scores`` [V, N]."""
    tokens = batch.tokens if at is None else take_columns(batch.tokens, at)
    return params["scores"][tokens]


def token_batch(tokens, real=None, mask=None) -> TokenBatch:
    """A TokenBatch of one sequence a row; real marks what is not padding."""
    tokens = jnp.asarray(tokens, jnp.int32)
    real = jnp.ones_like(tokens) if real is None else jnp.asarray(real, jnp.int32)
    mask = real > 0 if mask is None else jnp.asarray(mask, bool)
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    return TokenBatch(tokens, real, positions, mask)
