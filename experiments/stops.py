"""A script of several stages: a stop that one of them could not heed is the next's."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rlhf_jax.stopping import TRY_AGAIN

# Signals that came when a stage was done; None where no script is under way.
_late: ContextVar[list[str] | None] = ContextVar("late", default=None)


@contextmanager
def one_script() -> Iterator[None]:
    """What is called within it are the stages of one script, see `cli.run`.

    Elsewhere, such as in a notebook, each call is a run of its own, and a signal that
    came when one was done concerns no other.
    """
    token = _late.set([])
    try:
        yield
    finally:
        _late.reset(token)


def came_late(signal: str) -> None:
    """A stage was asked to stop when it was done, and had nothing left to stop."""
    if (late := _late.get()) is not None:
        late.append(signal)


def heed_stop(next_one: Path) -> None:
    """Stops a script before its next stage, if it was asked to at the end of another.

    Raises:
      SystemExit: with the exit code `TRY_AGAIN`.
    """
    if not (late := _late.get()):
        return
    print(
        f"{next_one}: stopped by {late[0]} before it began; the same command goes on "
        "(with --resume, where it has that option)",
        file=sys.stderr,
    )
    raise SystemExit(TRY_AGAIN)
