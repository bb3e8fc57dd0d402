"""How much a response repeats itself."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


def repetition(tokens: Array, mask: Array, *, ngram: int = 2) -> Array:
    """Share of a response's n-grams that were there before: 1 − different / all.

    seq-rep-n of Welleck et al. 2019, arXiv:1908.04319. n-grams are sorted, not compared
    in pairs: memory grows with T, not with T².

    Args:
      tokens: [B, T] int.
      mask: [B, T] bool, tokens of the response; may have holes, and no n-gram reaches
        over one.
      ngram: n, tokens.

    Returns:
      [B] float32, 0 … 1; 0 for a response without an n-gram. Tokens outside the mask
      have no part.

    Raises:
      ValueError: if ngram is below 1.

    >>> tokens = jnp.array([[1, 2, 3, 4, 9], [5, 5, 5, 5, 5]])
    >>> repetition(tokens, jnp.array([[True] * 4 + [False], [True] * 5])).tolist()
    [0.0, 0.75]
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram = {ngram}, expected 1 or more tokens")
    chex.assert_equal_shape([tokens, mask])
    chex.assert_rank(tokens, 2)
    count = max(tokens.shape[1] - ngram + 1, 0)
    columns = [tokens[:, i : i + count] for i in range(ngram)]
    whole = jnp.stack([mask[:, i : i + count] for i in range(ngram)]).all(axis=0)
    # What is no n-gram goes to the end, so that those that are equal are neighbours.
    keys = (~whole, *columns)
    out, *ranked = jax.lax.sort(keys, dimension=1, num_keys=len(keys))
    same = jnp.stack([x[:, 1:] == x[:, :-1] for x in ranked]).all(axis=0)
    again = jnp.sum(same & ~out[:, 1:], axis=1, dtype=jnp.float32)
    return again / jnp.maximum(jnp.sum(whole, axis=1, dtype=jnp.float32), 1.0)
