"""How functions of users are called: with what they name, in time, several at once.

A thread cannot be killed. A function that is late is given up: an async one is
cancelled where it next awaits, any other goes on in its daemon thread, which does not
keep the process alive, until it returns.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from rlhf_jax.errors import UserError


def function_name(function: Callable[..., Any]) -> str:
    """What messages call a function: its own name, or its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call must be awaited: ``async def``, or a class with such a call."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def arguments(
    function: Callable[..., Any], name: str, given: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """What of the columns a function takes: all with ``**kwargs``, else what it names.

    Raises:
      UserError: it asks for a column that is not there.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return dict(given)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    by_name = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = {n: given[n] for n in given if takes_all or n in by_name}
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind not in variadic
    ]
    if missing := [n for n in needed if n not in taken]:
        raise UserError(
            f"reward function {name} takes {', '.join(missing)}: expected some of "
            f"{', '.join(given)}, by name; add the column to the data, or a default"
        )
    return taken


def call_all(
    calls: Mapping[str, Callable[[], Any]],
    *,
    timeout: float | None,
    rows: str,
    what: str = "reward function",
) -> dict[str, Any]:
    """What functions return, each called once. No reference.

    Async ones run at the same time, in one event loop that lives in a thread. With a
    time-out the others do, too, each in a thread of its own, where signals cannot be
    set; without one they run here, one after another.

    Args:
      calls: {name: a function without arguments}.
      timeout: seconds for all of them together; None waits for ever.
      rows: which rows they are about, for messages.
      what: the functions are, for messages.

    Returns:
      {name: what was returned}. What a function raises is raised.

    Raises:
      UserError: a function is late; names it and the rows.

    >>> call_all({"a": lambda: 1, "b": lambda: 2}, timeout=9.0, rows="row 0")
    {'a': 1, 'b': 2}
    """
    futures: dict[str, Future[Any]] = {}
    try:
        # The async ones first: they wait while the others compute.
        for name in sorted(calls, key=lambda name: not is_async(calls[name])):
            futures[name] = _start(calls[name], in_thread=timeout is not None)
        done, _ = wait(futures.values(), timeout, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        if late := [name for name in calls if not futures[name].done()]:
            _event_loop.cache_clear()  # whoever blocks it would block the next ones
            raise UserError(
                f"{what} {', '.join(late)}, {rows}: no answer within {timeout} s; "
                "raise the time-out, or have the function give up by itself (it is "
                "left behind: cancelled if it awaits, else its thread goes on)"
            )
        return {name: futures[name].result() for name in calls}
    finally:
        for future in futures.values():
            future.cancel()


def _start(call: Callable[[], Any], *, in_thread: bool) -> "Future[Any]":
    if is_async(call):
        return asyncio.run_coroutine_threadsafe(call(), _event_loop())
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    if not in_thread:
        future.set_result(call())
        return future

    def run():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for all calls, so that a function may keep its connections."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
