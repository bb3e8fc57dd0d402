"""Prompts to responses: prefill, then one token a row and step until all have ended."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.errors import UserError
from rlhf_jax.masking import is_stop, response_mask
from rlhf_jax.ops.logits import (
    min_p_mask,
    scale_by_temperature,
    top_k_mask,
    top_p_mask,
)
from rlhf_jax.sampling.config import SamplingConfig
from rlhf_jax.types import ApplyFn, Array, Params, Rollout, TokenBatch


class _Loop(NamedTuple):
    """What one decoding step hands to the next."""

    step: Array  # [] int32: how many tokens are drawn
    last: Array  # [B] int32: the token to be read next
    running: Array  # [B] bool
    tokens: Array  # [B, R] int32
    logprobs: Array  # [B, R] float32
    cache: Any


def generate(
    apply_fn: ApplyFn,
    params: Params,
    prompts: TokenBatch,
    *,
    key: Array,
    config: SamplingConfig,
    rows: Array | None = None,
) -> Rollout:
    """Draws one response a prompt: y_t ~ truncate(π(· | x, y_<t)^(1/τ)).

    No reference. Row b draws with ``fold_in(fold_in(key, rows[b]), t)``, so that the
    same prompts get the same tokens in any split of the batch and on any number of
    devices, up to the rounding of the logits. The loop ends when every row has.

    Args:
      apply_fn: the policy.
      params: its parameters.
      prompts: [B, P], left-padded, one prompt a row (segment 1); the mask is not looked
        at, nor are the tokens under padding, which are handed on as they are.
      key: PRNG key.
      config: how to draw; its ``max_new_tokens`` is R below.
      rows: [B] int32 global rows; None for 0 … B − 1.

    Returns:
      Rollout of [B, P+R]. The mask is that of ``masking.response_mask``; logprobs are
      those of the whole distribution at the temperature, not of the truncated one, and
      0 outside the mask. After its stop token a row has ``pad_id`` in segment 0. A row
      whose last column is padding, as one added to fill a batch, has no prompt to
      answer: its response is empty and not truncated.

    Raises:
      UserError: prompts without a column. A response that exceeds the context is
        refused by the model.

    >>> coin = lambda params, batch, **_: ModelOutput(
    ...     jnp.zeros((*batch.tokens.shape, 2)), cache=())
    >>> from rlhf_jax.types import ModelOutput
    >>> one = jnp.ones((3, 1), jnp.int32)
    >>> prompts = TokenBatch(one, segment_ids=one, positions=0 * one, mask=one < 1)
    >>> config = SamplingConfig(max_new_tokens=4)
    >>> rollout = generate(coin, {}, prompts, key=jax.random.key(0), config=config)
    >>> rollout.batch.tokens.shape, rollout.logprobs[0, 1].round(4).item()
    ((3, 5), -0.6930999755859375)
    """
    chex.assert_rank(prompts.tokens, 2)
    batch_size, width = prompts.tokens.shape
    if width == 0:
        raise UserError("prompts are [B, 0]: give each row one token to start from")
    rows = jnp.arange(batch_size, dtype=jnp.int32) if rows is None else rows
    chex.assert_shape(rows, (batch_size,))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    lengths = jnp.sum(prompts.segment_ids > 0, axis=1, dtype=jnp.int32)

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < config.max_new_tokens) & jnp.any(loop.running)

    def decode(loop: _Loop) -> _Loop:
        batch = _one_column(loop.last, loop.running, lengths - 1 + loop.step)
        output = apply_fn(params, batch, cache=loop.cache)
        logits = scale_by_temperature(output.logits[:, 0], config.temperature)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step)
        tokens, logprobs = _draw(logits, step_keys, config)
        tokens = jnp.where(loop.running, tokens, config.pad_id)
        logprobs = jnp.where(loop.running, logprobs, 0.0)
        stop = is_stop(tokens, loop.step, config.stop_ids, config.stop_after)
        return _Loop(
            step=loop.step + 1,
            last=tokens,
            running=loop.running & ~stop,
            tokens=loop.tokens.at[:, loop.step].set(tokens),
            logprobs=loop.logprobs.at[:, loop.step].set(logprobs),
            cache=output.cache,
        )

    loop = _start(apply_fn, params, prompts, config)
    loop = jax.lax.while_loop(unfinished, decode, loop)
    return _rollout(prompts, loop, rows, config)


def _start(
    apply_fn: ApplyFn, params: Params, prompts: TokenBatch, config: SamplingConfig
) -> _Loop:
    """Reads the prompts up to their last token, which the first step reads.

    Nobody looks at the logits of this call, so that the compiler drops them: for a long
    prompt and a real vocabulary they would be the largest array of all.
    """
    batch_size, width = prompts.tokens.shape
    context = jax.tree.map(lambda x: x[:, :-1], prompts)
    size = width + config.max_new_tokens
    shape = (batch_size, config.max_new_tokens)
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        last=prompts.tokens[:, -1],
        running=prompts.segment_ids[:, -1] > 0,
        tokens=jnp.full(shape, config.pad_id, jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
        cache=apply_fn(params, context, cache_size=size).cache,
    )


def _one_column(tokens: Array, real: Array, positions: Array) -> TokenBatch:
    """[B] arrays as a batch of one token a row; rows that are not real are padding."""
    return TokenBatch(
        tokens=tokens[:, None],
        segment_ids=real[:, None].astype(jnp.int32),
        positions=jnp.where(real, positions, 0)[:, None],
        mask=real[:, None],
    )


def _draw(logits: Array, keys: Array, config: SamplingConfig) -> tuple[Array, Array]:
    """One token a row from scaled logits [B, V], and its log-prob before truncation.

    By inverse CDF: one uniform number a row instead of V Gumbel variables.
    """
    kept = logits
    if config.top_k is not None:
        kept = top_k_mask(kept, config.top_k)
    if config.top_p is not None:
        kept = top_p_mask(kept, config.top_p)
    if config.min_p is not None:
        kept = min_p_mask(kept, config.min_p)
    probs = jax.nn.softmax(kept, axis=-1)
    cumulative = jnp.where(probs > 0, jnp.cumsum(probs, axis=-1), 0.0)
    # The maximum rather than the last entry: a parallel sum need not be monotone, and
    # a threshold above every kept entry would select a token that was excluded.
    total = jnp.max(cumulative, axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys)
    tokens = jnp.argmax(cumulative > (uniform * total)[:, None], axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def _rollout(
    prompts: TokenBatch, loop: _Loop, rows: Array, config: SamplingConfig
) -> Rollout:
    """Puts prompts and responses together, aligned as ``types`` says."""
    tokens = jnp.concatenate([prompts.tokens, loop.tokens], axis=1)
    mask, truncated = response_mask(
        tokens,
        start=prompts.tokens.shape[1],
        stop_ids=config.stop_ids,
        stop_after=config.stop_after,
    )
    answered = prompts.segment_ids[:, -1] > 0
    mask = mask & answered[:, None]
    real = mask | (
        jnp.pad(prompts.segment_ids, ((0, 0), (0, loop.tokens.shape[1]))) > 0
    )
    logprobs = jnp.pad(loop.logprobs, ((0, 0), (prompts.tokens.shape[1], 0)))
    batch = TokenBatch(
        tokens=tokens,
        segment_ids=real.astype(jnp.int32),
        positions=jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0),
        mask=mask,
    )
    return Rollout(batch, logprobs, truncated & answered, rows)
