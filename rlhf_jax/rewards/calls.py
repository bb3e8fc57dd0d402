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
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
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
    retries: int = 0,
) -> dict[str, Any]:
    """What functions return, each called until it answers. No reference.

    Async ones run at the same time, in one event loop that lives in a thread. With a
    time-out the others do, too, each in a thread of its own, where signals cannot be
    set; without one they run here, one after another.

    Args:
      calls: {name: a function without arguments}.
      timeout: seconds for all of them together; None waits for ever.
      rows: which rows they are about, for messages.
      what: the functions are, for messages.
      retries: how often those are called again that were late or raised, and those that
        had no answer then, each time with the whole time-out. A UserError, which says
        what to do, is not tried again.

    Returns:
      {name: what was returned}.

    Raises:
      UserError: a function is late, or has raised an exception, which is the cause of
        the error; names it and the rows. A UserError of its own is raised as it is.

    >>> call_all({"a": lambda: 1, "b": lambda: 2}, timeout=9.0, rows="row 0")
    {'a': 1, 'b': 2}
    """
    found: dict[str, Any] = {}
    for tried in range(retries + 1):
        waiting = {name: call for name, call in calls.items() if name not in found}
        failures = _call_once(waiting, timeout, found)
        if not failures:
            return {name: found[name] for name in calls}
        for error in failures.values():
            # What says itself what to do, and Ctrl-C.
            if isinstance(error, UserError) or not isinstance(error, Exception | None):
                raise error
        if tried == retries:
            times = f" in {retries + 1} calls" if retries else ""
            message, cause = _failure(failures, f"{what} {{}}, {rows}", timeout, times)
            raise UserError(message) from cause
    raise UserError(f"retries = {retries}: expected 0 or more")


def _call_once(
    calls: Mapping[str, Callable[[], Any]],
    timeout: float | None,
    found: dict[str, Any],
) -> dict[str, BaseException | None]:
    """Adds answers to ``found``; returns what was raised, or None for who is late.

    The first exception ends it: who has not answered then is called again or never.
    """
    futures: dict[str, Future[Any]] = {}
    try:
        # The async ones first: they wait while the others compute.
        for name in sorted(calls, key=lambda name: not is_async(calls[name])):
            futures[name] = _start(calls[name], in_thread=timeout is not None)
            if _raised(futures[name]) is not None:
                break
        wait(futures.values(), timeout, return_when=FIRST_EXCEPTION)
        done = {name: future for name, future in futures.items() if future.done()}
        raised = {name: _raised(future) for name, future in done.items()}
        found |= {n: f.result() for n, f in done.items() if raised[n] is None}
        failed: dict[str, BaseException | None] = {
            name: error for name, error in raised.items() if error is not None
        }
        if not failed and len(done) < len(futures):
            _event_loop.cache_clear()  # whoever blocks it would block the next ones
            failed = dict.fromkeys(name for name in calls if name not in done)
        return failed
    finally:
        for future in futures.values():
            future.cancel()


def _raised(future: "Future[Any]") -> BaseException | None:
    """What a call has raised, None if it has not."""
    if not future.done():
        return None
    try:
        return future.exception()
    except CancelledError as error:  # by the function itself
        return error


def _failure(
    failures: Mapping[str, BaseException | None],
    shown: str,
    timeout: float | None,
    times: str,
) -> tuple[str, BaseException | None]:
    """One line, in which ``shown`` has a place for the name; and what was raised."""
    for name, error in failures.items():
        if error is not None:
            said = " ".join(str(error).split())[:200]
            message = f"{shown.format(name)}: raised{times} {type(error).__name__}"
            return f"{message}: {said}: mend the function, or allow retries", error
    return (
        f"{shown.format(', '.join(failures))}: no answer within {timeout} s{times}; "
        "raise the time-out, or have the function give up by itself (it is left "
        "behind: cancelled if it awaits, else its thread goes on)",
        None,
    )


def _start(call: Callable[[], Any], *, in_thread: bool) -> "Future[Any]":
    if is_async(call):
        return asyncio.run_coroutine_threadsafe(call(), _event_loop())
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    if in_thread:
        threading.Thread(target=run, daemon=True).start()
    else:
        run()
    return future


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for all calls, so that a function may keep its connections."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
