"""Scores of pairs of texts, by a reward model or by a function."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.judgements import tokenize_labelled
from experiments.rollouts import score_step
from rlhf_jax.data import Labeled, Preference, batches, right_padded
from rlhf_jax.data.records import TokenIds
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.models import score_apply
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard, unshard
from rlhf_jax.rewards import RewardFunction, ScoreKind, call_reward_function
from rlhf_jax.stages import Stage, pad_id

BATCH = 64  # texts at a time on each device

Pairs = Sequence[Preference[Any]]  # of texts, or of messages


class PairScorer(NamedTuple):
    """A reward, for pairs."""

    check: Callable[[list[Any]], list[Any]]  # the pairs; names one that does not fit
    score: Callable[[Pairs], np.ndarray]  # [P, 2] float64, the preferred first


class Judged(NamedTuple):
    """Pairs, and what is known of each."""

    pairs: list[Preference[Any]]
    scores: np.ndarray  # [P, 2]
    lengths: np.ndarray  # [P, 2] words
    groups: np.ndarray  # [P] int: which prompt

    def differences(self) -> np.ndarray:
        """[P]: r(x, y₊) − r(x, y₋)."""
        return self.scores[:, 0] - self.scores[:, 1]


def judge_pairs(pairs: list[Preference[Any]], scorer: PairScorer) -> Judged:
    """The pairs with their scores; those of one prompt are a group."""
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(repr(p.prompt), len(numbers)) for p in pairs]
    lengths = [[len(text_of(y).split()) for y in (p.chosen, p.rejected)] for p in pairs]
    return Judged(pairs, scorer.score(pairs), np.array(lengths), np.array(groups))


def make_pair_scorer(
    reward: Stage | RewardFunction,
    kind: ScoreKind,
    too_long: TooLong,
    count: int | None,
) -> PairScorer:
    """By a reward model on so many devices, all if None; or by a function."""
    if not isinstance(reward, Stage):
        return PairScorer(lambda pairs: pairs, functools.partial(_call, reward))
    devices = local_devices(count)
    score_fn = score_apply(reward.model, num_outputs=reward.num_outputs)
    step = functools.partial(
        score_step, score_fn=score_fn, kind=kind, label=reward.label
    )
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=0)
    params, pad = replicate(reward.whole(), devices), pad_id(reward.tokenizer)
    limits: Any = {"max_length": reward.model.max_length, "too_long": too_long}

    def tokenize(pairs: Pairs) -> list[Labeled[TokenIds]]:
        flat = [Labeled(p.prompt, y, 1, p.origin) for p in pairs for y in sides(p)]
        return tokenize_labelled(flat, reward.tokenizer, **limits)[0]

    def check(pairs: list[Any]) -> list[Any]:
        tokenize(pairs)
        return pairs

    def score(pairs: Pairs) -> np.ndarray:
        examples = tokenize(pairs)
        longest = max((len(e.prompt + e.completion) for e in examples), default=1)
        length = -(-longest // 16) * 16  # few lengths, few programs
        collate = lambda rows: right_padded(
            [e.prompt for e in rows],
            [e.completion for e in rows],
            length=min(length, limits["max_length"]),
            pad_id=pad,
        )
        found = [
            np.asarray(unshard(mapped(params, shard(batch, devices))))[real]
            for batch, real in batches(examples, BATCH * len(devices), collate)
        ]
        return np.concatenate([np.zeros(0), *found]).reshape(-1, 2)

    return PairScorer(check, score)


def _call(reward: RewardFunction, pairs: Pairs) -> np.ndarray:
    prompts = [text_of(p.prompt) for p in pairs for _ in range(2)]
    texts = [text_of(y) for p in pairs for y in sides(p)]
    scores = call_reward_function(reward, prompts, texts)
    return scores.reshape(-1, 2).astype(np.float64)


def sides(pair: Preference[Any]) -> tuple[Any, Any]:
    """The preferred one first."""
    return pair.chosen, pair.rejected


def text_of(value: Any) -> str:
    """A text as it is; messages as their contents."""
    if isinstance(value, str):
        return value
    return "\n".join(message["content"] for message in value)


def edited(pair: Preference[Any], edit: Callable[[str], str]) -> Preference[Any]:
    """A pair with both sides edited; of an answer of messages the last one."""

    def apply(value: Any) -> Any:
        if isinstance(value, str):
            return edit(value)
        *before, last = value
        return (*before, last | {"content": edit(last["content"])})

    chosen, rejected = map(apply, sides(pair))
    return dataclasses.replace(pair, chosen=chosen, rejected=rejected)
