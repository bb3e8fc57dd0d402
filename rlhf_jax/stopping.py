"""Being asked to stop: SIGTERM and SIGINT end a run after the step under way."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# Exit codes of the scripts, besides 0 (done) and 1 (a defect, with its traceback).
USER_ERROR = 2  # one line says what a person can mend
TRY_AGAIN = 75  # stopped on the way, all saved: the same command with --resume goes on


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """Yields a function that says which signal has asked to stop, None for none.

    No reference. The first SIGTERM or SIGINT only asks; what is under way is finished
    and saved. More SIGTERMs change nothing; a second SIGINT ends the process at once,
    and the last checkpoint stays as it is. Outside the main thread, where signals
    cannot be had, nothing is changed.

    >>> import os, time
    >>> with stop_signals() as asked:
    ...     before = asked()
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     time.sleep(0.01)
    ...     before, asked()
    (None, 'SIGTERM')
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(signal.Signals(number).name)
        if number == signal.SIGINT:  # the next one is not ours: it ends the process
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            again = "; Ctrl-C again ends it at once"
        else:
            again = ""
        if len(asked) == 1:
            print(
                f"\n{asked[0]}: stopping after this step, then saving{again}",
                file=sys.stderr,
                flush=True,
            )

    both = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, ask) for number in both}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
