"""Reading prompts: all columns but the last, whole or in chunks."""

from typing import Any

import jax

from rlhf_jax.types import ApplyFn, Array, Params, TokenBatch


def prefill(
    apply_fn: ApplyFn,
    params: Params,
    prompts: TokenBatch,
    *,
    columns: int | None,
    chunk: int | None,
) -> Any:
    """The cache after every column of the prompts but the last, which decoding reads.

    Nobody looks at the logits of this call, so that the compiler drops them: for a long
    prompt and a real vocabulary they would be the largest array of all. In chunks, the
    activations of a long prompt are those of one chunk.

    Args:
      apply_fn: the policy.
      params: its parameters.
      prompts: [B, P], left-padded.
      columns: of the cache; None for those of the prompts alone.
      chunk: how many columns are read at a time; None for all.
    """
    context = jax.tree.map(lambda x: x[:, :-1], prompts)
    width = context.tokens.shape[1]
    if chunk is None or width <= chunk:
        return apply_fn(params, context, cache_size=columns or width).cache
    first = (
        width - (width - 1) // chunk * chunk
    )  # shorter, so that the others are whole

    def part(i: Array) -> TokenBatch:
        cut = jax.lax.dynamic_slice_in_dim
        return jax.tree.map(lambda x: cut(x, first + i * chunk, chunk, axis=1), context)

    beginning = jax.tree.map(lambda x: x[:, :first], context)
    cache = apply_fn(params, beginning, cache_size=columns or width).cache
    read = lambda i, cache: apply_fn(params, part(i), cache=cache).cache
    return jax.lax.fori_loop(0, (width - first) // chunk, read, cache)
