"""Format, length and repetition; those that TRL has, too, on the same responses."""

import re

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.rewards import (
    call_reward_function,
    combine_rewards,
    format_reward,
    length_reward,
    overlong_reward,
    repetition_reward,
)

IDS = [[1] * n for n in (0, 1, 79, 80, 81, 90, 99, 100, 101, 300)]


def score(function, ids):
    texts = [""] * len(ids)
    return call_reward_function(function, texts, texts, {"completion_ids": ids})


def test_the_whole_completion_has_the_format():
    think = format_reward(r"<think>.*</think>\s*\d+")
    completions = ["<think>a\nb</think> 42", "<think></think>7 or 8", "no", ""]
    assert think(completions=completions) == [1.0, 0.0, 0.0, 0.0]


def test_a_pattern_that_is_none():
    with pytest.raises(UserError, match=re.escape("pattern '(': missing )")):
        format_reward("(")


def test_length_by_hand():
    found = score(length_reward(80, coef=0.5), IDS[1:5])
    assert found.tolist() == [-39.5, -0.5, 0.0, -0.5]


def test_overlong_by_hand():
    # Limit 100, the last 20 of it cost: 1/20 a token.
    found = score(overlong_reward(100, buffer=20), IDS)
    expected = [0, 0, 0, 0, -0.05, -0.5, -0.95, -1, -1, -1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_repetition_by_hand():
    # Pairs: 12 21 12 21, of which two differ; none; one.
    ids = [[1, 2, 1, 2, 1], [], [1], [1, 2], [1, 2, 3, 4]]
    found = score(repetition_reward(2, coef=3.0), ids)
    assert found.tolist() == [-1.5, 0.0, 0.0, 0.0, 0.0]
    assert score(repetition_reward(1, coef=1.0), ids[:1]).tolist() == [
        np.float32(-0.6).item()
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: overlong_reward(10, buffer=0), "buffer = 0: expected 1 to"),
        (lambda: overlong_reward(10, buffer=11), "buffer = 11: expected 1 to"),
        (lambda: repetition_reward(0), "ngram = 0: expected 1 or more"),
    ],
)
def test_numbers_out_of_range(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_names_of_columns_that_are_missing():
    with pytest.raises(UserError, match="length_score takes completion_ids"):
        call_reward_function(length_reward(3), ["a"], ["b"])


# What TRL has, called here.


@pytest.fixture
def trl_rewards():
    return pytest.importorskip("trl.rewards", reason="the oracle of these tests")


def test_equals_trl(trl_rewards):
    rng = np.random.default_rng(0)
    ids = IDS + [rng.integers(0, 4, n).tolist() for n in (2, 3, 10, 40)]
    pairs = [
        (
            overlong_reward(100, buffer=20),
            trl_rewards.get_soft_overlong_punishment(100, 20),
        ),
        (
            repetition_reward(3, coef=0.7),
            trl_rewards.get_repetition_penalty_reward(3, -0.7),
        ),
        (repetition_reward(2), trl_rewards.get_repetition_penalty_reward(2)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(score(ours, ids), score(theirs, ids), rtol=1e-6)


def test_functions_that_read_messages(trl_rewards):
    """In one line, as the docs say."""
    messages = lambda completions, **columns: trl_rewards.think_format_reward(
        completions=[[{"role": "assistant", "content": c}] for c in completions],
        **columns,
    )
    functions = {
        "think": messages,
        "penalty": trl_rewards.get_repetition_penalty_reward(1),
    }
    columns = {"completion_ids": [[1, 1], [1, 2]]}
    completions = ["<think>so</think> 2", "2"]
    found = combine_rewards(functions, ["", ""], completions, columns)
    assert found.scores.tolist() == [0.5, 0.0]
