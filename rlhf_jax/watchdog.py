"""Notices when another process of a run is dead or stands still, and says so.

A process that waits for a dead one waits for ever, or fails with an error of the
network that names nobody. Here each tells the others every second that it is there. Who
hears nothing of one for too long writes down where its own threads stand, names the
silent one in one line, and ends with an exit code that says: run all of them again.
"""

import contextlib
import ctypes
import faulthandler
import itertools
import json
import math
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import processes
from rlhf_jax.errors import UserError
from rlhf_jax.stopping import TRY_AGAIN, USER_ERROR

AGAIN = "run all of them again with --resume"
_LINGER_S = 5.0  # so that the others hear why this one ends

_step: int | None = None  # the last one that this process made
_steps_made = 0


def step_made(step: int) -> None:
    """To be called after every step of a loop: it goes on. No reference.

    >>> step_made(1)
    """
    global _step, _steps_made
    _step, _steps_made = step, _steps_made + 1


@contextlib.contextmanager
def watching(run_dir: Path | None, *, stall_s: float | None = None) -> Iterator[None]:
    """Watches the other processes while something runs, and this one. No reference.

    A process alone that is given no ``stall_s`` has no thread more. With others, this
    ends the process in place of an exception: when one of them is silent for
    `processes.heartbeat_s`, with exit code 75 and its name; and when this one fails,
    having told the others why, which then end, too, with its exit code.

    Args:
      run_dir: where ``stacks.<process>.txt`` goes, where the threads stood; None or
        where it is not there yet: stderr.
      stall_s: seconds without a `step_made`, compilation and evaluation among them,
        after which this process is given up; None: never.

    >>> with watching(None):
    ...     print("alone")
    alone
    """
    if processes.count() == 1 and stall_s is None:
        yield
        return
    watch = _Watch(run_dir, stall_s)
    try:
        yield
    except SystemExit:  # all of them stop, or this one has misunderstood
        watch.finish(watch.patience_s)
        raise
    except BaseException as error:
        watch.failed(error)
        raise
    watch.finish()


class _Watch:
    """Two threads: one talks to process 0's service and may hang, one never waits."""

    def __init__(self, run_dir: Path | None, stall_s: float | None):
        self.run_dir, self.stall_s = run_dir, stall_s
        self.here, self.count = processes.index(), processes.count()
        self.patience_s = processes.heartbeat_s()
        self.beat_s = min(1.0, self.patience_s / 10)
        self.who = f"{socket.gethostname()}, pid {os.getpid()}"
        self.beats = itertools.count()
        self.heard: dict[int, dict[str, Any]] = {}  # the last of each other process
        others = (p for p in range(self.count) if p != self.here)
        self.silent_s = dict.fromkeys(others, 0.0)
        self.ended: tuple[int, str] | None = None  # exit code and reason of this one
        self.has_told_end, self.closed = threading.Event(), threading.Event()
        self.leaving = threading.Lock()
        self.threads = [threading.Thread(target=self._judge, daemon=True)]
        if self.count > 1:
            self.threads.append(threading.Thread(target=self._talk, daemon=True))
            self._catch_abort()
        for thread in self.threads:
            thread.start()

    def _talk(self) -> None:
        while True:
            end = self.ended
            record = {"n": next(self.beats), "who": self.who, "step": _step, "end": end}
            # Without process 0 nobody answers: `_judge` sees that nothing comes.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                processes.tell(f"beat/{self.here}", json.dumps(record))
                if end is not None:
                    self.has_told_end.set()
                for name, text in processes.told("beat").items():
                    process, record = int(name), json.loads(text)
                    if process != self.here and record != self.heard.get(process):
                        self.heard[process], self.silent_s[process] = record, 0.0
            if self.closed.wait(self.beat_s):
                return

    def _judge(self) -> None:
        # Counted in beats, not by the clock: who was stopped itself blames nobody.
        quiet_s, made = 0.0, _steps_made
        while not self.closed.wait(self.beat_s):
            for process in self.silent_s:
                if end := self._end_of(process):
                    if end[0]:
                        self._leave(*end)
                else:
                    self.silent_s[process] += self.beat_s
            silent = [p for p, s in self.silent_s.items() if s >= self.patience_s]
            if silent:  # what the others say goes through process 0
                silent = [0] if 0 in silent else silent
                what = f"has been silent for {self.patience_s:.0f} s"
                self._leave(TRY_AGAIN, self._about(silent, what))
            quiet_s = 0.0 if made != _steps_made else quiet_s + self.beat_s
            made = _steps_made
            if self.stall_s is not None and quiet_s >= self.stall_s:
                what = f"has made no step for {self.stall_s:g} s"
                self._leave(TRY_AGAIN, f"{self._name(self.here)} {what}: {AGAIN}")

    def _end_of(self, process: int) -> tuple[int, str] | None:
        end = self.heard.get(process, {}).get("end")
        return None if end is None else tuple(end)

    def _name(self, process: int) -> str:
        if process == self.here:
            return f"process {process} ({self.who})"
        known = self.heard.get(process)
        return f"process {process}" + (f" ({known['who']})" if known else "")

    def _about(self, several: list[int], what: str) -> str:
        steps = {p: self.heard.get(p, {}).get("step") for p in several}
        names = (
            self._name(p) + ("" if steps[p] is None else f" at step {steps[p]}")
            for p in several
        )
        return f"{' and '.join(names)} {what}: {AGAIN}"

    def failed(self, error: BaseException) -> None:
        """Tells the others and ends; the process alone goes on with its exception."""
        if self.count == 1:
            self.finish()
            return
        lines = str(error).splitlines() or [""]
        if re.match("[A-Z_]+: ", lines[0]):
            # XLA's errors begin so, whatever their type, and mostly this is what the
            # network says of another's death: `_judge` finds out whose.
            self._print(f"{lines[0]}\nlooking whether another process has died …")
            time.sleep(self.patience_s + 3 * self.beat_s)
            if gone := [p for p in self.silent_s if self._end_of(p)]:
                self._leave(TRY_AGAIN, self._about(gone, "has ended"))
        code = USER_ERROR if isinstance(error, UserError) else 1
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT
        if code == 1:
            traceback.print_exception(error)
        said = "" if code == USER_ERROR else f"{type(error).__name__}: "
        why = f"{self._name(self.here)} has ended: {said}{lines[0]}"
        self._leave(code, why, f"error: {error}" if code == USER_ERROR else why)

    def finish(self, limit_s: float = math.inf) -> None:
        """Waits for the others to come as far, as long as they are there."""
        if self.count > 1:
            self.ended, waited_s = (0, ""), 0.0
            while late := [p for p in self.silent_s if not self._end_of(p)]:
                time.sleep(self.beat_s)
                waited_s += self.beat_s
                if waited_s > limit_s:
                    self._leave(TRY_AGAIN, self._about(late, "has not stopped"))
            self.has_told_end.wait(_LINGER_S)
            ctypes.CDLL(None).signal(signal.SIGABRT, None)  # as before `_catch_abort`
        self.closed.set()
        for thread in self.threads:
            thread.join(_LINGER_S)

    def _leave(self, code: int, why: str, line: str | None = None) -> None:
        """Ends the process, without what would wait for the others. Never returns."""
        if not self.leaving.acquire(blocking=False):  # the first reason counts
            threading.Event().wait()
        self.ended = (code, why)
        stacks = f"; stacks: {self._dump_stacks()}" if code == TRY_AGAIN else ""
        self._print(f"{line or f'error: {why}'}{stacks}")
        if self.count > 1:
            self.has_told_end.wait(_LINGER_S / 2)
        if self.here == 0:  # its end is the end of the service, and of who needs that
            end = time.monotonic() + _LINGER_S / 2
            lost = lambda p: self._end_of(p) or self.silent_s[p] >= self.patience_s
            while time.monotonic() < end and not all(map(lost, self.silent_s)):
                time.sleep(self.beat_s)
        os._exit(code)

    def _print(self, text: str) -> None:
        # Not by way of sys.stderr: whoever holds its lock may be what stands still.
        os.write(2, f"{text}\n".encode())

    def _dump_stacks(self) -> str:
        """Writes down where all threads are; says where that is written."""
        if self.run_dir is not None and self.run_dir.is_dir():
            path = self.run_dir / f"stacks.{self.here}.txt"
            with contextlib.suppress(OSError):  # a full disk must not hide the reason
                with path.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                return str(path)
        faulthandler.dump_traceback(2, all_threads=True)
        return "above"

    def _catch_abort(self) -> None:
        """JAX aborts when its connection to process 0 breaks; then that is the reason.

        The callback that it has for this cannot be in Python: it ends in a bad_cast
        (jaxlib 0.10.2). Nor can a handler of Python's, which runs too late.
        """
        host, _, port = processes.coordinator_address().rpartition(":")

        def aborted(number: int) -> None:
            del number
            with contextlib.suppress(OSError):
                with socket.create_connection((host, int(port)), timeout=2):
                    return  # it is there: this abort has another reason
            self.has_told_end.set()  # nobody is there to be told
            why = self._about([0], "has ended")
            self._leave(*(self._end_of(0) or (TRY_AGAIN, why)))

        self.on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self.on_abort)
