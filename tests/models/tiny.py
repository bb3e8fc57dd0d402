"""Helpers of the model tests: random parameters and batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Params, TokenBatch

# Compiles in half the time: what runs once need not run fast.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": "0"}
)


def randomize(params: Params) -> Params:
    """Adds noise to every leaf, so that no zero or one hides an error."""
    rng = np.random.default_rng(0)
    noise = lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(noise, params)


def batch_of(segments: list[list[int]], seed: int = 0) -> TokenBatch:
    """Random tokens in the given segments; positions count each segment's own."""
    ids = np.array(segments, np.int32)
    positions = np.zeros_like(ids)
    for row, column in np.argwhere(ids > 0):
        before = ids[row, :column]
        positions[row, column] = (before == ids[row, column]).sum()
    tokens = np.random.default_rng(seed).integers(1, 23, ids.shape)
    return TokenBatch(
        tokens=jnp.asarray(tokens, jnp.int32),
        segment_ids=jnp.asarray(ids),
        positions=jnp.asarray(positions),
        mask=jnp.asarray(ids > 0),
    )
