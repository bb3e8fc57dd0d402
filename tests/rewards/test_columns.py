"""Rewards that read the other columns of a prompt's row."""

import pytest
from models.hf.cases import assert_one_line

from rlhf_jax.data import Prompt
from rlhf_jax.errors import UserError
from rlhf_jax.rewards import call_reward_function, with_columns

PROMPTS = [
    Prompt("1+1=", "sums.jsonl:1", {"answer": "2", "level": 1}),
    Prompt("2+2=", "sums.jsonl:2", {"answer": "4", "level": 5}),
]


def right(completions, answer):
    return [float(y == z) for y, z in zip(completions, answer, strict=True)]


async def late_right(completions, answer):
    return right(completions, answer)


def everything(prompts, completions, **columns):
    assert set(columns) == {"answer", "level", "completion_ids"}
    return columns["level"]


@pytest.mark.parametrize("function", [right, late_right])
def test_each_completion_meets_the_columns_of_its_own_prompt(function):
    asked = ["2+2=", "1+1=", "2+2=", "1+1="]
    scores = call_reward_function(
        with_columns(function, PROMPTS), asked, ["4", "2", "2", "4"]
    )
    assert scores.tolist() == [1, 1, 0, 0]


def test_keywords_get_all_columns_and_what_the_caller_gives():
    reward = with_columns(everything, PROMPTS)
    found = call_reward_function(
        reward, ["2+2=", "1+1="], ["", ""], {"completion_ids": [[1], [2]]}
    )
    assert found.tolist() == [5, 1]


def test_a_function_that_takes_none_is_left_as_it_is():
    brief = lambda completions: [-len(c) for c in completions]
    assert with_columns(brief, PROMPTS) is brief


def test_a_column_that_some_rows_lack_is_none():
    rows = [*PROMPTS, Prompt("3+3=", "sums.jsonl:3", {"level": 2})]
    with pytest.raises(UserError, match="right takes answer: expected some of") as e:
        with_columns(right, rows)
    assert_one_line(e)


def test_one_prompt_with_two_answers_is_refused_only_if_they_are_read():
    rows = [*PROMPTS, Prompt("1+1=", "sums.jsonl:9", {"answer": "2", "level": 3})]
    assert with_columns(right, rows)(prompts=["1+1="], completions=["2"]) == [1.0]
    with pytest.raises(UserError, match="sums.jsonl:9: same prompt as sums.*:1") as e:
        with_columns(everything, rows)
    assert "'level'" in str(e.value)
    assert_one_line(e)
