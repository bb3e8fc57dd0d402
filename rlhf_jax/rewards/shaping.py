"""Rewards for the form of a response: its format, its length, its repetitions.

Each of these functions makes a reward function. Lengths and repetitions are counted in
tokens, the column ``completion_ids``, as TRL counts them.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from rlhf_jax.errors import UserError
from rlhf_jax.ops.length_penalty import overlong_penalty
from rlhf_jax.rewards.functions import RewardFunction

TokenIds = Sequence[Sequence[int]]


def format_reward(pattern: str) -> RewardFunction:
    """1 where the whole completion matches a regular expression, else 0. No reference.

    A dot matches line ends, too.

    Raises:
      UserError: not a regular expression.

    >>> think = format_reward("<think>.*</think>.+")
    >>> think(completions=["<think>1 + 1</think>2", "2"])
    [1.0, 0.0]
    """
    try:
        expression = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"format_reward: pattern {pattern!r}: {error}") from error

    def format_score(completions: Sequence[str], **columns: Any) -> list[float]:
        del columns
        return [float(expression.fullmatch(c) is not None) for c in completions]

    return format_score


def length_reward(target: int, *, coef: float = 3e-4) -> RewardFunction:
    """Cost of a length that differs from the target: −coef · abs(n − target).

    Aggarwal and Welleck 2025 (L1), arXiv:2503.04697, eq. 1, who add it to the reward of
    a right answer.

    Args:
      target: tokens.
      coef: score a token.

    >>> length_reward(3, coef=0.5)(completion_ids=[[7, 7, 7], [7]])
    [0.0, -1.0]
    """

    def length_score(completion_ids: TokenIds, **columns: Any) -> list[float]:
        del columns
        return [0.0 - coef * abs(len(ids) - target) for ids in completion_ids]

    return length_score


def overlong_reward(max_length: int, *, buffer: int) -> RewardFunction:
    """Cost of a response that nears its limit: 0, then linear, −1 from the limit on.

    `ops.overlong_penalty` with limit L and buffer b: Yu et al. 2025 (DAPO),
    arXiv:2503.14476, eq. 13. TRL's ``get_soft_overlong_punishment``.

    Args:
      max_length: L, tokens.
      buffer: b, tokens before it in which the cost grows; 1 … L.

    Raises:
      UserError: a buffer out of range.

    >>> overlong_reward(10, buffer=4)(completion_ids=[[7] * 6, [7] * 9, [7] * 12])
    [0.0, -0.75, -1.0]
    """
    if not 1 <= buffer <= max_length:
        raise UserError(
            f"overlong_reward: buffer = {buffer}: expected 1 to max_length = "
            f"{max_length} tokens"
        )

    def overlong_score(completion_ids: TokenIds, **columns: Any) -> list[float]:
        del columns
        lengths = jnp.array([len(ids) for ids in completion_ids])
        return overlong_penalty(lengths, budget=max_length, buffer=buffer).tolist()

    return overlong_score


def repetition_reward(ngram: int = 3, *, coef: float = 1.0) -> RewardFunction:
    """Cost of n-grams that were there before: −coef · (1 − different / all of them).

    Yeo et al. 2025 ("Demystifying long chain-of-thought"), arXiv:2502.03373, who give
    a cost to each repeated token; as one number a response it is TRL's
    ``get_repetition_penalty_reward``, whose ``max_penalty`` is −coef. A response of
    fewer than n tokens costs nothing.

    Args:
      ngram: n, tokens.
      coef: score of a response that says one thing only.

    Raises:
      UserError: n below 1.

    >>> repetition_reward(2)(completion_ids=[[1, 2, 3], [5, 5, 5, 5, 5]])
    [0.0, -0.75]
    """
    if ngram < 1:
        raise UserError(
            f"repetition_reward: ngram = {ngram}: expected 1 or more tokens"
        )

    def repetition_score(completion_ids: TokenIds, **columns: Any) -> list[float]:
        del columns
        return [0.0 - coef * _repeated_share(ids, ngram) for ids in completion_ids]

    return repetition_score


def _repeated_share(ids: Sequence[int], ngram: int) -> float:
    ngrams = [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
