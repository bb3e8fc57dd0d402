"""Rewards computed by Python functions on text: r(x, y) on the host."""

import importlib
import math
import numbers
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf_jax.errors import UserError

RewardFunction = Callable[..., Sequence[float]]


def load_reward_function(name: str) -> RewardFunction:
    """Imports ``module:function``. No reference.

    The function is called as ``f(prompts=[...], completions=[...])`` with strings and
    returns one number a completion.

    Raises:
      UserError: no such module or function.

    >>> load_reward_function("builtins:len")([1, 2])
    2
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"reward function {name!r}: {error}; expected module:function, importable "
            "from here"
        ) from error
    return found


def call_reward_function(
    function: RewardFunction, prompts: list[str], completions: list[str]
) -> np.ndarray:
    """Calls a reward function and checks what it returns. No reference.

    Args:
      function: ``(prompts, completions) -> B finite numbers``, called by keyword.
      prompts: B texts.
      completions: B texts.

    Returns:
      [B] float32.

    Raises:
      UserError: not a sequence of B finite numbers; names function, row and value.
        Nothing is broadcast or cast.

    >>> length = lambda prompts, completions: [len(c) for c in completions]
    >>> call_reward_function(length, ["a"], ["bcd"])
    array([3.], dtype=float32)
    """
    name = getattr(function, "__name__", type(function).__name__)
    scores = function(prompts=prompts, completions=completions)
    if isinstance(scores, np.ndarray | jax.Array):
        scores = scores.tolist()
    expected = f"expected a list of {len(completions)} finite numbers"
    if isinstance(scores, str | bytes) or not hasattr(scores, "__len__"):
        raise UserError(
            f"reward function {name} returned {type(scores).__name__}: {expected}"
        )
    if len(scores) != len(completions):
        raise UserError(
            f"reward function {name} returned {len(scores)} scores: {expected}"
        )
    for row, score in enumerate(scores):
        if not isinstance(score, numbers.Real) or not math.isfinite(score):
            raise UserError(
                f"reward function {name}, row {row}: score {score!r} of "
                f"{completions[row][:60]!r}: {expected}"
            )
    return np.asarray(scores, np.float32)
