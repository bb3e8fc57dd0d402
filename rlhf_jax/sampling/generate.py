"""Prompts to responses: slots that decode, and are filled again when they are free.

One compiled graph. Every step draws one token in each slot that has not ended. With as
many slots as rows nothing waits; with fewer, the other prompts are a queue: they are
read some at a time, and each takes the place of a row that has ended, so that the whole
costs about the tokens that it draws, whatever the longest response is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.errors import UserError
from rlhf_jax.masking import is_stop, response_mask
from rlhf_jax.sampling.config import SamplingConfig
from rlhf_jax.sampling.draw import Drawn, draw
from rlhf_jax.sampling.prefill import prefill
from rlhf_jax.types import ApplyFn, Array, Params, Rollout, TokenBatch

REPORT_EVERY = 16  # steps between two reports of a long rollout


class _Slots(NamedTuple):
    """What one step hands to the next. S slots, N rows to answer, R tokens of each."""

    row: Array  # [S] int32: the row that a slot answers
    drawn: Array  # [S] int32: how many of its tokens are drawn
    last: Array  # [S] int32: the token to be read next
    length: Array  # [S] int32: tokens of its prompt
    running: Array  # [S] bool
    queued: Array  # [] int32: the next prompt to be answered
    step: Array  # [] int32: steps of all slots
    tokens_drawn: Array  # [] int32: by all slots
    cache: Any
    found: Drawn  # [N, R, …]


_PER_SLOT = ("row", "drawn", "last", "length", "running")


class Queue(NamedTuple):
    """All prompts, M of them, with K responses each to be drawn: N = M·K."""

    prompts: TokenBatch  # [M, P]
    rows: Array  # [N] int32: global rows
    uniform: Array  # [N, R] float32


def generate(
    apply_fn: ApplyFn,
    params: Params,
    prompts: TokenBatch,
    *,
    key: Array,
    config: SamplingConfig,
    rows: Array | None = None,
    report: Callable[..., None] | None = None,
) -> Rollout:
    """Draws K responses a prompt: y_t ~ truncate(π(· | x, y_<t)^(1/τ)).

    No reference; slots are the continuous batching of Orca (Yu et al., OSDI 2022).
    Token t of global row r is drawn with ``fold_in(fold_in(key, r), t)``, so that the
    same prompts get the same tokens in any split of the batch, on any number of devices
    and of slots, up to the rounding of the logits.

    Args:
      apply_fn: the policy. Its cache needs ``share`` where prompts have several
        completions; where there are fewer slots than rows, ``repeat`` instead, and
        ``insert`` and ``take`` (`models.KVCache`).
      params: its parameters.
      prompts: [M, P], left-padded, one prompt a row (segment 1); the mask is not looked
        at, nor are the tokens under padding, which are handed on as they are.
      key: PRNG key.
      config: how to draw; K ``completions`` of R ``max_new_tokens`` at most.
      rows: [M] int32 global rows of the prompts, None for 0 … M − 1; completion k of
        prompt r is the global row r·K + k.
      report: called on the host every 16 steps, and not waited for, with the counts
        that `RolloutMeter` takes.

    Returns:
      Rollout of [M·K, P+R], the completions of a prompt one after the other, in the
      order of the prompts. The mask is that of ``masking.response_mask``; log-probs are
      0 outside it. After its stop token a row has ``pad_id`` in segment 0. A row whose
      last column is padding, as one added to fill a batch, has no prompt to answer: its
      response is empty and not truncated.

    Raises:
      UserError: prompts without a column; slots that do not hold whole groups. A
        response that exceeds the context is refused by the model.

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
    queue = _make_queue(prompts, rows, key, config)
    count = queue.rows.shape[0]
    slots = count if config.slots is None else min(config.slots, count)
    step = partial(_decode, apply_fn, params, queue, config, report)
    start = partial(_start, apply_fn, params, queue, config, slots)
    if slots == count:
        lengths = _stage_lengths(config)
        end = _in_stages(step, start(lengths[0]), lengths)
        return _rollout(queue, end.found, config)

    def full(s: _Slots) -> Array:
        return slots - jnp.sum(s.running) < config.completions

    def answer_more(s: _Slots) -> _Slots:
        """Reads the next prompts together; each begins as soon as there is room."""
        first, last = s.queued, s.queued + config.read_ahead
        ready = _read(apply_fn, params, queue, config, first)

        def begin_next(s: _Slots) -> _Slots:
            s = jax.lax.while_loop(full, step, s)
            return _begin(s, *ready, s.queued - first, config)

        more = lambda s: s.queued < jnp.minimum(last, len(prompts.tokens))
        return jax.lax.while_loop(more, begin_next, s)

    waiting = lambda s: s.queued < len(prompts.tokens)
    end = jax.lax.while_loop(waiting, answer_more, start(config.max_new_tokens))
    end = _in_halves(step, end, config.stages)
    return _rollout(queue, end.found, config)


def _make_queue(
    prompts: TokenBatch, rows: Array | None, key: Array, config: SamplingConfig
) -> Queue:
    chex.assert_rank(prompts.tokens, 2)
    count, width = prompts.tokens.shape
    if width == 0:
        raise UserError("prompts are [B, 0]: give each row one token to start from")
    if config.slots is not None and config.slots % config.completions:
        raise UserError(
            f"slots={config.slots}: set it to a multiple of completions="
            f"{config.completions}, so that all of a prompt's are decoded together"
        )
    rows = jnp.arange(count, dtype=jnp.int32) if rows is None else rows
    chex.assert_shape(rows, (count,))
    completions = jnp.arange(config.completions, dtype=jnp.int32)
    rows = (rows[:, None] * config.completions + completions[None]).reshape(-1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    times = jnp.arange(config.max_new_tokens)
    each = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))
    uniform = jax.vmap(lambda key: each(jnp.broadcast_to(key, times.shape), times))
    return Queue(prompts, rows, uniform(keys))


def _stage_lengths(config: SamplingConfig) -> list[int]:
    """How many tokens of a response the cache has room for, stage after stage."""
    stages = range(1, config.stages + 1)
    return [-(-config.max_new_tokens * stage // config.stages) for stage in stages]


def _in_stages(
    step: Callable[[_Slots], _Slots], s: _Slots, lengths: list[int]
) -> _Slots:
    """Decodes until all rows have ended; before each stage but one the cache grows."""
    for length, before in zip(lengths, [lengths[0], *lengths], strict=False):
        if length > before:
            s = s._replace(cache=s.cache.widen(length - before))
        going = lambda s, end=length: jnp.any(s.running) & (s.step < end)
        s = jax.lax.while_loop(going, step, s)
    return s


def _in_halves(step: Callable[[_Slots], _Slots], s: _Slots, stages: int) -> _Slots:
    """Decodes what runs when nothing waits; free slots are dropped, half at a time."""
    for _ in range(stages - 1):
        half = s.row.shape[0] // 2
        if half == 0:
            break
        s = jax.lax.while_loop(lambda s, half=half: jnp.sum(s.running) > half, step, s)
        kept = jnp.argsort(~s.running, stable=True)[:half]
        slots = {name: getattr(s, name)[kept] for name in _PER_SLOT}
        s = s._replace(**slots, cache=s.cache.take(kept))
    return jax.lax.while_loop(lambda s: jnp.any(s.running), step, s)


def _start(
    apply_fn: ApplyFn,
    params: Params,
    queue: Queue,
    config: SamplingConfig,
    slots: int,
    length: int,
) -> _Slots:
    """The first prompts, read into as many slots, with room for ``length`` tokens."""
    held = slots // config.completions
    first = jax.tree.map(lambda x: x[:held], queue.prompts)
    refilled = slots < queue.rows.shape[0]
    cache = _open(apply_fn, params, first, config, length, refilled=refilled)
    each = partial(_repeat, times=config.completions)
    room = (queue.rows.shape[0], config.max_new_tokens)
    zeros, kept = jnp.zeros(room, jnp.float32), None
    if config.keep_sets:
        last = jax.tree.map(lambda x: each(x[:, -1:]), first)
        logits = jax.eval_shape(apply_fn, params, last, cache=cache).logits
        kept = jnp.zeros((*room, -(-logits.shape[-1] // 8)), jnp.uint8)
    tokens = jnp.full(room, config.pad_id, jnp.int32)
    return _Slots(
        row=jnp.arange(slots, dtype=jnp.int32),
        drawn=jnp.zeros((slots,), jnp.int32),
        last=each(first.tokens[:, -1]),
        length=each(_lengths(first)),
        running=each(first.segment_ids[:, -1] > 0),
        queued=jnp.int32(held),
        step=jnp.int32(0),
        tokens_drawn=jnp.int32(0),
        cache=cache,
        found=Drawn(tokens, zeros, zeros, zeros, kept),
    )


def _open(
    apply_fn: ApplyFn,
    params: Params,
    prompts: TokenBatch,
    config: SamplingConfig,
    length: int,
    *,
    refilled: bool,
) -> Any:
    """The cache of the first prompts' completions, with room for ``length`` tokens.

    Where slots are filled again each row has a copy of its prompt; where they are not,
    the completions of a prompt share it.
    """
    read = partial(prefill, apply_fn, params, prompts, chunk=config.prefill_chunk)
    if config.completions > 1 and not refilled:
        return read(columns=None).share(config.completions, length + 1)
    cache = read(columns=prompts.tokens.shape[1] + length)
    return cache if config.completions == 1 else cache.repeat(config.completions)


def _read(
    apply_fn: ApplyFn,
    params: Params,
    queue: Queue,
    config: SamplingConfig,
    first: Array,
) -> tuple[Any, TokenBatch]:
    """(cache, prompts) of the next ones in the queue; at its end, some of its last."""
    wanted = first + jnp.arange(config.read_ahead, dtype=jnp.int32)
    at = jnp.minimum(wanted, queue.prompts.tokens.shape[0] - 1)
    new = jax.tree.map(lambda x: x[at], queue.prompts)
    chunk = config.prefill_chunk
    return prefill(apply_fn, params, new, columns=None, chunk=chunk), new


def _begin(
    s: _Slots, read: Any, prompts: TokenBatch, i: Array, config: SamplingConfig
) -> _Slots:
    """Prompt i of those that are read takes the places of rows that have ended."""
    prompt = jax.tree.map(lambda x: x[i], prompts)
    completions = jnp.arange(config.completions, dtype=jnp.int32)
    free = jnp.argsort(s.running, stable=True)[: config.completions]
    fresh = read.take(i[None])
    if config.completions > 1:
        fresh = fresh.repeat(config.completions)
    put = lambda held, x: held.at[free].set(x)
    return s._replace(
        row=put(s.row, s.queued * config.completions + completions),
        drawn=put(s.drawn, 0),
        last=put(s.last, prompt.tokens[-1]),
        length=put(s.length, jnp.sum(prompt.segment_ids > 0, dtype=jnp.int32)),
        running=put(s.running, prompt.segment_ids[-1] > 0),
        queued=s.queued + 1,
        cache=s.cache.insert(fresh, free),
    )


def _decode(
    apply_fn: ApplyFn,
    params: Params,
    queue: Queue,
    config: SamplingConfig,
    report: Callable[..., None] | None,
    s: _Slots,
) -> _Slots:
    """One token in every slot that runs."""
    read = TokenBatch(
        tokens=s.last[:, None],
        segment_ids=s.running[:, None].astype(jnp.int32),
        positions=jnp.where(s.running, s.length - 1 + s.drawn, 0)[:, None],
        mask=s.running[:, None],
    )
    output = apply_fn(params, read, cache=s.cache)
    new = draw(output.logits[:, 0], queue.uniform[s.row, s.drawn], config)
    row = jnp.where(s.running, s.row, queue.rows.shape[0])  # no row: dropped
    put = lambda held, x: held.at[row, s.drawn].set(x, mode="drop")
    stop = is_stop(new.tokens, s.drawn, config.stop_ids, config.stop_after)
    drawn = s.drawn + s.running
    if report is not None:
        _report(report, queue, s)
    return s._replace(
        drawn=drawn,
        last=new.tokens,
        running=s.running & ~stop & (drawn < config.max_new_tokens),
        step=s.step + 1,
        tokens_drawn=s.tokens_drawn + jnp.sum(s.running),
        cache=output.cache,
        found=jax.tree.map(put, s.found, new),
    )


def _report(report: Callable[..., None], queue: Queue, s: _Slots) -> None:
    """Tells the host, now and then; the device does not wait for it."""
    completions = queue.rows.shape[0] // queue.prompts.tokens.shape[0]
    busy = jnp.sum(s.running)
    begun = jnp.minimum(s.queued * completions, queue.rows.shape[0])
    jax.lax.cond(
        s.step % REPORT_EVERY == 0,
        lambda: jax.debug.callback(
            report,
            source=queue.rows[0],
            step=s.step,
            tokens=s.tokens_drawn,
            busy=busy,
            slots=s.row.shape[0],
            ended=begun - busy,
            rows=queue.rows.shape[0],
            budget=queue.uniform.shape[1],
        ),
        lambda: None,
    )


def _rollout(queue: Queue, found: Drawn, config: SamplingConfig) -> Rollout:
    """Puts prompts and responses together, aligned as ``types`` says."""
    prompts: TokenBatch = jax.tree.map(
        partial(_repeat, times=config.completions), queue.prompts
    )
    width = prompts.tokens.shape[1]
    tokens = jnp.concatenate([prompts.tokens, found.tokens], axis=1)
    mask, truncated = response_mask(
        tokens, start=width, stop_ids=config.stop_ids, stop_after=config.stop_after
    )
    answered = prompts.segment_ids[:, -1] > 0
    mask = mask & answered[:, None]
    asked = jnp.pad(prompts.segment_ids > 0, ((0, 0), (0, config.max_new_tokens)))
    real = mask | asked
    batch = TokenBatch(
        tokens=tokens,
        segment_ids=real.astype(jnp.int32),
        positions=jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0),
        mask=mask,
    )
    align = lambda x: jnp.pad(x, ((0, 0), (width, 0)))
    kept = found.kept
    if kept is not None:  # outside the mask every token is possible
        kept = jnp.pad(kept, ((0, 0), (width, 0), (0, 0)))
        kept = jnp.where(mask[..., None], kept, jnp.uint8(255))
    loss = found.logprobs if kept is None else found.processed_logprobs
    return Rollout(
        batch,
        logprobs=align(loss),
        truncated=truncated & answered,
        row=queue.rows,
        raw_logprobs=align(found.raw_logprobs),
        processed_logprobs=align(found.processed_logprobs),
        kept=kept,
    )


def _repeat(x: Array, times: int) -> Array:
    return x if times == 1 else jnp.repeat(x, times, axis=0)


def _lengths(prompts: TokenBatch) -> Array:
    return jnp.sum(prompts.segment_ids > 0, axis=1, dtype=jnp.int32)
