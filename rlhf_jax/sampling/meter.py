"""How a long rollout goes on, from what its devices report."""

import time
from collections.abc import Callable
from typing import Any


class RolloutMeter:
    """Turns the reports of `generate` into a rate, a share and the time left.

    Give it to ``generate`` as ``report``. It is called on the host, by each device for
    itself, while the compiled loop runs.

    >>> clock = iter([0.0, 2.0]).__next__
    >>> meter = RolloutMeter(print, clock=clock)
    >>> meter(source=0, step=0, tokens=0, busy=4, slots=4, ended=0, rows=8, budget=32)
    >>> meter(source=0, step=16, tokens=60, busy=3, slots=4, ended=4, rows=8, budget=32)
    {'ended': 4, 'rows': 8, 'tok/s': 30.0, 'busy': 0.75, 'left_s': 2.0}
    """

    def __init__(
        self,
        show: Callable[[dict[str, float]], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """``show`` gets the numbers: responses that ended and all of them, tokens a
        second, share of busy slots, seconds left."""
        self._show, self._clock = show, clock
        self._last: dict[int, dict[str, int]] = {}
        self._began = 0.0

    def __call__(self, *, source: Any, **counts: Any) -> None:
        """One device's counts; step 0 of a device begins the next rollout."""
        now, new = self._clock(), {name: int(x) for name, x in counts.items()}
        if new["step"] == 0:
            if not self._last or self._last.get(int(source), new)["step"] > 0:
                self._last, self._began = {}, now
            self._last[int(source)] = new
            return
        self._last[int(source)] = new
        total = {name: sum(d[name] for d in self._last.values()) for name in new}
        seconds = max(now - self._began, 1e-9)
        self._show(
            {
                "ended": total["ended"],
                "rows": total["rows"],
                "tok/s": total["tokens"] / seconds,
                "busy": total["busy"] / total["slots"],
                "left_s": seconds * max(map(_left, self._last.values())),
            }
        )


def _left(counts: dict[str, int]) -> float:
    """How much longer a device takes, as a multiple of the time that it took so far.

    By the responses that ended; and where no prompt waits, no longer than the steps
    that the longest response may still take.
    """
    longest = (counts["budget"] - counts["step"]) / max(counts["step"], 1)
    waits = counts["rows"] > counts["slots"]
    if counts["ended"] == 0:
        return counts["rows"] / counts["slots"] * max(longest, 0.0)
    by_rows = (counts["rows"] - counts["ended"]) / counts["ended"]
    return by_rows if waits else min(by_rows, max(longest, 0.0))
