"""Reward functions of users: whatever they return, nothing is cast or broadcast."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.rewards import call_reward_function, load_reward_function

PROMPTS, COMPLETIONS = ["a", "b"], ["one", "two"]


def call(returned: Any):
    def reward(prompts, completions):
        assert (prompts, completions) == (PROMPTS, COMPLETIONS)
        return returned

    return call_reward_function(reward, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    "returned",
    [[0.7, -1], (0.7, -1), np.array([0.7, -1]), jnp.array([0.7, -1.0])],
)
def test_numbers_arrive_as_float32(returned):
    found = call(returned)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([0.7, -1], np.float32))


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, ["NoneType", "2 finite numbers"]),
        (0.5, ["float", "2 finite numbers"]),
        ("ab", ["str"]),
        (b"ab", ["bytes"]),
        (np.float32(0.5), ["float32"]),
        (jnp.float32(0.5), ["float", "2 finite numbers"]),
        ({0.5, 0.7}, ["set"]),
        ({"a": 0.5, "b": 0.7}, ["dict"]),
        ([0.5], ["1 scores"]),
        ([0.5] * 3, ["3 scores"]),
        ([], ["0 scores"]),
        ([0.5, float("nan")], ["row 1", "nan", "two"]),
        ([float("inf"), 0], ["row 0", "inf", "one"]),
        ([0.5, None], ["row 1", "None"]),
        ([-float("inf"), 0], ["row 0", "-inf", "one"]),
        ([0.5, "1"], ["row 1", "'1'"]),
        ([0.5, 10**400], ["row 1", "1000"]),
        ([0.5, 1e300], ["row 1", "1e+300"]),
        ([0.5, 1j], ["row 1", "1j"]),
        (np.zeros((2, 1)), ["row 0", "[0.0]"]),
    ],
)
def test_anything_else_names_function_row_and_value(returned, words):
    with pytest.raises(UserError) as error:
        call(returned)
    message = str(error.value)
    assert "\n" not in message and "reward" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["no.such:f", "builtins:no", "builtins", ""])
def test_unknown_function(name):
    with pytest.raises(UserError, match="module:function"):
        load_reward_function(name)
