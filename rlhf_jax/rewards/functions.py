"""Rewards computed by Python functions on text: r(x, y) on the host."""

import functools
import importlib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.rewards.calls import arguments, call_all, function_name

RewardFunction = Callable[..., Any]
Columns = Mapping[str, Sequence[Any]]
LARGEST = float(np.finfo(np.float32).max)  # of what a score may be


def load_reward_function(name: str) -> RewardFunction:
    """Imports ``module:function``. No reference.

    The function is called as ``f(prompts=[...], completions=[...], **columns)``, with
    texts and the data's other columns, and returns one number a completion, see
    ``call_reward_function``.

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
    function: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Columns | None = None,
    *,
    timeout: float | None = None,
    retries: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Calls a reward function and checks what it returns. No reference.

    Its arguments are those of TRL: by keyword, ``**kwargs`` gets every column, and a
    function without it those that its signature names. ``async def`` is awaited.

    Args:
      function: ``(prompts, completions, **columns) -> B finite numbers``.
      prompts: B texts.
      completions: B texts.
      columns: {name: B values}, such as the answers; ``completion_ids`` are by custom
        the token ids of the completions.
      timeout: seconds for each call; it then runs in a thread. A function that is late
        is left behind there: threads cannot be killed. None waits for ever.
      retries: calls more, at most, where one is late or raises an exception.
      batch_size: rows a call, one call after another; None: all at once.

    Returns:
      [B] float32.

    Raises:
      UserError: not a sequence of B finite numbers (None, which says that a function
        does not apply, is for ``combine_rewards``), a column that is not there, no
        answer in time, an exception, which is the error's cause; names function, row
        and value. Nothing is broadcast or cast.

    >>> right = lambda completions, answer: [float(x == y) for x, y in
    ...     zip(completions, answer)]
    >>> call_reward_function(right, ["1+1="] * 2, ["2", "3"], {"answer": ["2", "2"]})
    array([1., 0.], dtype=float32)
    """
    name = function_name(function)
    scores = score_table(
        {name: function},
        prompts,
        completions,
        columns,
        timeout=timeout,
        retries=retries,
        batch_size=batch_size,
    )[name]
    if np.isnan(scores).any():
        row = int(np.isnan(scores).argmax())
        raise UserError(
            f"reward function {name}, row {row}: score None of "
            f"{completions[row][:60]!r}: expected a finite number; None says that the "
            "function does not apply, which only a weighted sum of several leaves out"
        )
    return scores


def score_table(
    functions: Mapping[str, RewardFunction],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Columns | None,
    *,
    timeout: float | None,
    retries: int,
    batch_size: int | None,
) -> dict[str, np.ndarray]:
    """{name: [B] float32, NaN for None} of several functions, a batch at a time."""
    given: Columns = {"prompts": prompts, "completions": completions, **(columns or {})}
    _check_rows(given, columns or {}, timeout, batch_size)
    count = len(completions)
    found: dict[str, list[float]] = {name: [] for name in functions}
    for start in range(0, max(count, 1), batch_size or max(count, 1)):
        rows = slice(start, min(start + (batch_size or count), count))
        batch = {name: list(values[rows]) for name, values in given.items()}
        calls = {
            name: functools.partial(f, **arguments(f, name, batch))
            for name, f in functions.items()
        }
        shown = f"rows {start} to {rows.stop - 1}"
        options: Any = {"timeout": timeout, "retries": retries, "rows": shown}
        for name, scores in call_all(calls, **options).items():
            found[name] += _checked(name, scores, batch["completions"], start)
    return {name: np.asarray(scores, np.float32) for name, scores in found.items()}


def _checked(
    name: str, scores: Any, completions: Sequence[str], start: int
) -> list[float]:
    """The scores of a batch that begins with row ``start``, NaN for None."""
    if isinstance(scores, np.ndarray | jax.Array):
        scores = scores.tolist()
    expected = f"expected a list of {len(completions)} finite numbers"
    unordered = isinstance(scores, str | bytes | Set | Mapping)
    if unordered or not hasattr(scores, "__len__"):
        raise UserError(
            f"reward function {name} returned {type(scores).__name__}: {expected}"
        )
    if len(scores) != len(completions):
        raise UserError(
            f"reward function {name} returned {len(scores)} scores: {expected}"
        )
    for row, score in enumerate(scores):
        if score is None:
            continue
        size: Any = abs(score) if isinstance(score, numbers.Real) else math.nan
        if not size <= LARGEST:
            raise UserError(
                f"reward function {name}, row {start + row}: score {score!r:.60} of "
                f"{completions[row][:60]!r}: {expected} that float32 holds"
            )
    return [math.nan if score is None else float(score) for score in scores]


def _check_rows(
    given: Columns, columns: Columns, timeout: float | None, batch_size: int | None
) -> None:
    for name in ("prompts", "completions"):
        if name in columns:
            raise UserError(f"column {name!r}: the texts have that name; rename it")
    count = len(given["completions"])
    for name, values in given.items():
        if len(values) != count:
            raise UserError(
                f"column {name!r} has {len(values)} values: expected one a completion, "
                f"{count}"
            )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: expected 1 or more, or none")
    if timeout is not None and not timeout > 0:
        raise UserError(f"timeout = {timeout}: expected more than 0 s, or none")
