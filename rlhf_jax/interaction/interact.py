"""Responses in several turns: what an environment says stands between the policy's.

The environment's tokens are read as any other, and are outside the mask: the policy is
taught nothing about them. What the policy drew is never tokenized anew.
"""

import dataclasses
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import left_padded
from rlhf_jax.data.tokenizer import encode_texts
from rlhf_jax.interaction.config import InteractionConfig, check, context_width
from rlhf_jax.interaction.environment import Environment, ask
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.types import Array, Rollout, TokenBatch


class Sampler(Protocol):
    """`steps.sample_step` with its policy bound: one turn of every row."""

    def __call__(
        self, prompts: TokenBatch, row: Array, /, *, key: Array, config: SamplingConfig
    ) -> Rollout: ...


_PER_TOKEN = ("logprobs", "raw_logprobs", "processed_logprobs", "kept")


class _Held(NamedTuple):
    """Responses as far as they have come; NumPy. N rows, T columns when all is said."""

    tokens: np.ndarray  # [N, T] int32
    mask: np.ndarray  # [N, T] bool: the policy emitted it
    of_tokens: dict[str, np.ndarray]  # [N, T, …]: those of _PER_TOKEN that there are
    end: np.ndarray  # [N] int: the column after the last token
    going: np.ndarray  # [N] bool: the policy has handed over, and may say more
    truncated: np.ndarray  # [N] bool


def interact(
    sample: Sampler,
    prompts: TokenBatch,
    environment: Environment,
    tokenizer: Any,
    *,
    key: Array,
    sampling: SamplingConfig,
    config: InteractionConfig,
    rows: Array | None = None,
) -> Rollout:
    """Samples responses that an environment has a part in: turn, answer, turn, …

    y = a₁ e₁ a₂ e₂ … aₙ with aᵢ ~ π(· | x, a₁, e₁, …, eᵢ₋₁) and eᵢ = env(x a₁ … aᵢ).
    Yao et al. 2022, arXiv:2210.03629. A turn ends with one of ``turn_ids``; a response
    with one of the ``stop_ids`` of sampling, or where the environment says None. Turn i
    is drawn with ``fold_in(key, i)``, and there each row has its own key, as `generate`
    says: the same prompts get the same responses in any order or split of the batch.

    The sampler reads the whole context again each turn. A turn has one width, so that
    it is compiled at most once a turn for a size of batch: `context_width`. Rows that
    have ended stay in the batch as rows without a prompt.

    Args:
      sample: one turn; a jitted `steps.sample_step` with its policy bound.
      prompts: [M, P], left-padded, one prompt a row.
      environment: what answers.
      tokenizer: of transformers; the environment reads texts without special tokens.
      key: PRNG key.
      sampling: how each turn is drawn; ``max_new_tokens`` R is the budget of all the
        policy's turns together, ``completions`` the responses a prompt.
      config: when the environment is asked, turns, tokens and seconds that it has.
      rows: [M] int32 global rows of the prompts, None for 0 … M − 1.

    Returns:
      Rollout of [M·K, P + R + (turns − 1) · env_tokens]; mask and log-probs are of the
      policy's tokens alone, 0 elsewhere. Truncated are responses that used up their
      tokens or turns. Each ends with a token of the policy.

    Raises:
      UserError: a turn id that is a stop id, a stop id that counts from later on; an
        environment that raises, is late, or returns neither text nor None.
    """
    check(sampling, config)
    width = prompts.tokens.shape[1]
    most, ids = sampling.max_new_tokens, sampling.stop_ids + config.turn_ids
    rows = jnp.arange(len(prompts.tokens), dtype=jnp.int32) if rows is None else rows
    each = dataclasses.replace(sampling, stop_ids=ids)
    new = sample(prompts, rows, key=jax.random.fold_in(key, 0), config=each)
    new, prompts, row = jax.device_get((new, prompts, new.row))
    columns = width + most + (config.turns - 1) * config.env_tokens
    held = _append(_begin(new, width, columns, each), new, most, config)
    each = dataclasses.replace(each, completions=1)
    for turn in range(1, config.turns):
        held = _answer(held, prompts, environment, tokenizer, config)
        if not held.going.any():
            break
        wide = context_width(width, turn + 1, sampling, config)
        contexts = _contexts(held, prompts, wide, sampling.pad_id)
        drawn = sample(contexts, row, key=jax.random.fold_in(key, turn), config=each)
        held = _append(held, jax.device_get(drawn), most, config)
    return _rollout(held, prompts, row)


def spoken(rollout: Rollout, tokenizer: Any) -> list[list[tuple[bool, str]]]:
    """What was said in turn: (whether by the policy, text), the prompt first.

    No reference. From a response's last turn a reward can tell what the policy answered
    itself.

    Args:
      rollout: [B, T], not packed.
      tokenizer: of transformers; special tokens are left out.

    Returns:
      For each row its turns; none for a row without a prompt.
    """
    batch = jax.device_get(rollout.batch)
    found = []
    for tokens, mask, segments in zip(
        batch.tokens, batch.mask, batch.segment_ids, strict=True
    ):
        turns = groupby(np.nonzero(segments)[0], key=lambda t, mask=mask: bool(mask[t]))
        found.append([(by, _text(tokenizer, tokens[[*at]])) for by, at in turns])
    return found


def _begin(new: Rollout, width: int, columns: int, config: SamplingConfig) -> _Held:
    """Room for what will be said, in which the prompts alone stand."""
    count = len(new.row)
    tokens = np.full((count, columns), config.pad_id, np.int32)
    tokens[:, :width] = new.batch.tokens[:, :width]
    of_tokens = {
        name: np.full((count, columns, *x.shape[2:]), _outside(x), x.dtype)
        for name in _PER_TOKEN
        if (x := getattr(new, name)) is not None
    }
    no = np.zeros(count, bool)
    mask = np.zeros((count, columns), bool)
    return _Held(tokens, mask, of_tokens, np.full(count, width), no, no)


def _outside(x: np.ndarray) -> int:
    """What stands outside the mask: log-prob 0, and every token is possible."""
    return 255 if x.dtype == np.uint8 else 0


def _append(held: _Held, new: Rollout, most: int, config: InteractionConfig) -> _Held:
    """The policy's turn, as far as its budget goes, at the ends of the rows."""
    drawn = new.batch.mask.sum(1)
    count = np.minimum(drawn, most - held.mask.sum(1))
    first = new.batch.tokens.shape[1] - most
    row, nth = np.nonzero(np.arange(most) < count[:, None])
    to, source = (row, held.end[row] + nth), (row, first + nth)
    put = partial(_put, to=to)
    last = new.batch.tokens[np.arange(len(count)), first + np.maximum(count, 1) - 1]
    over = new.truncated | (drawn > count)
    handed = (drawn > 0) & ~over & np.isin(last, config.turn_ids)
    mask = put(held.mask, True)
    left = mask.sum(1) < most
    return _Held(
        tokens=put(held.tokens, new.batch.tokens[source]),
        mask=mask,
        of_tokens={
            name: put(x, getattr(new, name)[source])
            for name, x in held.of_tokens.items()
        },
        end=held.end + count,
        going=handed & left,
        truncated=held.truncated | over | (handed & ~left),
    )


def _put(x: np.ndarray, values: Any, to: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    x = x.copy()
    x[to] = values
    return x


def _answer(
    held: _Held,
    prompts: TokenBatch,
    environment: Environment,
    tokenizer: Any,
    config: InteractionConfig,
) -> _Held:
    """What the environment says, at the ends of the rows that have handed over."""
    rows = np.nonzero(held.going)[0].tolist()
    contexts = _said(held, prompts)
    texts = {row: _text(tokenizer, contexts[row]) for row in rows}
    answers = ask(environment, texts, timeout=config.timeout)
    spoken = {row: text for row, text in answers.items() if text is not None}
    tokens, end = held.tokens.copy(), held.end.copy()
    encoded = encode_texts(tokenizer, list(spoken.values()))
    for row, ids in zip(spoken, encoded, strict=True):
        ids = ids[: config.env_tokens]
        tokens[row, end[row] : end[row] + len(ids)] = ids
        end[row] += len(ids)
    going = held.going & np.isin(np.arange(len(end)), list(spoken))
    return held._replace(tokens=tokens, end=end, going=going)


def _said(held: _Held, prompts: TokenBatch) -> list[np.ndarray]:
    """Token ids of each row without its padding."""
    width = prompts.tokens.shape[1]
    times = len(held.end) // len(prompts.tokens)
    start = np.repeat(width - (prompts.segment_ids > 0).sum(1), times)
    return [
        tokens[first:last]
        for tokens, first, last in zip(held.tokens, start, held.end, strict=True)
    ]


def _contexts(held: _Held, prompts: TokenBatch, width: int, pad_id: int) -> TokenBatch:
    """What the policy reads next; nothing in rows that have ended."""
    said = _said(held, prompts)
    asked = [
        tuple(tokens.tolist()) if on else ()
        for tokens, on in zip(said, held.going, strict=True)
    ]
    return left_padded(asked, length=width, pad_id=pad_id)


def _text(tokenizer: Any, tokens: np.ndarray) -> str:
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=True)


def _rollout(held: _Held, prompts: TokenBatch, row: np.ndarray) -> Rollout:
    """Aligned as ``types`` says; who is still going has no turn left."""
    count, columns = held.tokens.shape
    times = count // len(prompts.tokens)
    start = prompts.tokens.shape[1]
    at = np.arange(columns)
    real = (at >= start) & (at < held.end[:, None])
    real[:, :start] = np.repeat(prompts.segment_ids > 0, times, axis=0)
    device: Any = jnp.asarray
    batch = TokenBatch(
        tokens=device(held.tokens),
        segment_ids=device(real.astype(np.int32)),
        positions=device(np.maximum(np.cumsum(real, axis=1, dtype=np.int32) - 1, 0)),
        mask=device(held.mask),
    )
    return Rollout(
        batch,
        truncated=device(held.truncated | held.going),
        row=device(row),
        **jax.tree.map(device, held.of_tokens),
    )
