"""Weighted sums of reward functions: parts by name, None left out, at the same time."""

import asyncio
import threading

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.rewards import call_reward_function, combine_rewards

PROMPTS, COMPLETIONS = ["a", "b", "c"], ["one", "two", "three"]


def returns(*scores):
    return lambda completions: list(scores)


def combine(functions, **options):
    return combine_rewards(functions, PROMPTS, COMPLETIONS, **options)


def test_a_weighted_sum_without_those_that_do_not_apply():
    functions = {"a": returns(1, 2, None), "b": returns(None, 10, 20)}
    found = combine(functions, weights={"b": -0.5, "a": 3.0})
    assert found.scores.dtype == np.float32
    assert found.scores.tolist() == [3.0, 6.0 - 5.0, -10.0]
    np.testing.assert_array_equal(found.parts["a"], [1, 2, np.nan])
    np.testing.assert_array_equal(found.parts["b"], [np.nan, 10, 20])
    assert found.metrics() == {
        "rewards/a/mean": 1.5,
        "rewards/a/std": 0.5,
        "rewards/b/mean": 15.0,
        "rewards/b/std": 5.0,
    }


def test_weights_are_1_by_default():
    found = combine({"a": returns(1, 2, 3), "b": returns(0, 0, -5)})
    assert found.scores.tolist() == [1.0, 2.0, -2.0]


def test_a_function_that_applies_to_no_row_has_no_metrics():
    found = combine({"a": returns(1, 2, 3), "b": returns(None, None, None)})
    assert set(found.metrics()) == {"rewards/a/mean", "rewards/a/std"}


def test_a_row_to_which_nothing_applies():
    functions = {"a": returns(1, None, 1), "b": returns(1, None, None)}
    with pytest.raises(UserError, match=r"row 1, 'two': .*\(a, b\) returned None"):
        combine(functions)


def test_none_is_for_weighted_sums():
    with pytest.raises(UserError, match="row 2: score None of 'three'.*weighted sum"):
        call_reward_function(returns(1, 2, None), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    ("functions", "weights", "words"),
    [
        ({"a": len}, {"b": 1.0}, "weights of b: expected one for each of a"),
        ({"a": len, "b": len}, {"a": 1.0}, "weights of a: .* each of a, b"),
        ({}, None, "at least one function"),
        ({"a": len}, {"a": float("nan")}, "weight of a = nan: expected a finite"),
    ],
)
def test_weights_that_do_not_fit(functions, weights, words):
    with pytest.raises(UserError, match=words):
        combine(functions, weights=weights)


def test_messages_name_the_part():
    with pytest.raises(UserError, match="reward function b, row 0: score 'x'"):
        combine({"a": returns(1, 2, 3), "b": returns("x", 2, 3)})
    with pytest.raises(UserError, match="reward function b takes answer"):
        combine({"a": returns(1, 2, 3), "b": lambda answer: []})


# Each waits for the other: one after the other they would never end.


def meet(barrier):
    def reward(completions):
        barrier.wait(10)
        return [0.0] * 3

    return reward


def test_functions_with_a_time_out_run_at_the_same_time():
    barrier = threading.Barrier(2)
    functions = {"a": meet(barrier), "b": meet(barrier)}
    assert combine(functions, timeout=20).scores.tolist() == [0.0] * 3


def test_async_functions_run_at_the_same_time():
    opened = {}

    def wait_for(mine, other):
        async def reward(completions):
            opened[mine] = True
            while other not in opened:
                await asyncio.sleep(0.001)
            return [1.0] * 3

        return reward

    functions = {"a": wait_for("a", "b"), "b": wait_for("b", "a")}
    assert combine(functions).scores.tolist() == [2.0] * 3


def test_async_functions_wait_while_the_others_compute():
    begun, done = threading.Event(), threading.Event()

    async def judge(completions):
        begun.set()
        while not done.is_set():
            await asyncio.sleep(0.001)
        return [1.0] * 3

    def compute(completions):
        assert begun.wait(10)
        done.set()
        return [1.0] * 3

    # The one that computes is named first, and called last.
    assert combine({"compute": compute, "judge": judge}).scores.tolist() == [2.0] * 3


def test_all_that_are_late_are_named():
    never = threading.Event()
    functions = {
        "slow": lambda completions: never.wait(10),
        "fast": returns(1, 2, 3),
        "late": lambda completions: never.wait(10),
    }
    with pytest.raises(UserError, match="function slow, late, rows 0 to 2: no answer"):
        combine(functions, timeout=0.1)
    never.set()
