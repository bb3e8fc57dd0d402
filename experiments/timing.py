"""Timing of one iteration after another, and the line that says what came out."""

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Report = dict[str, Any]


class Case(NamedTuple):
    """What is timed; one row of a table."""

    workload: str
    model: str
    beta: float | None = None  # of W6

    @property
    def label(self) -> str:
        return self.workload if self.beta is None else f"{self.workload} β {self.beta}"


class Workload(NamedTuple):
    """Something to be timed."""

    run: Callable[[], Any]  # one iteration; returns when its results are there
    items: float  # what an iteration makes …
    unit: str  # … of what, a second


def alternate(
    workloads: Sequence[Workload], *, warmup: int, reps: int
) -> list[list[float]]:
    """Seconds of ``reps`` iterations of each workload, in turn: A B A B.

    What disturbs one then disturbs all, and their ratio stays what it is. The warm-up,
    which compiles, is not counted.
    """
    for workload in workloads:
        for _ in range(warmup):
            workload.run()
    seconds: list[list[float]] = [[] for _ in workloads]
    for _ in range(reps):
        for workload, times in zip(workloads, seconds, strict=True):
            start = time.perf_counter()
            workload.run()
            times.append(time.perf_counter() - start)
    return seconds


class ForeignCPU:
    """Cores that other processes keep busy from now on.

    Above 0.05 a figure is suspect: threads that wait for one another lose far more than
    the share that is taken from them.
    """

    def __init__(self):
        self._since, self._busy = time.perf_counter(), _busy_seconds()

    def cores(self) -> float | None:
        """The average so far; None where the system does not tell (not Linux)."""
        now = _busy_seconds()
        if self._busy is None or now is None:
            return None
        machine, own = (after - b for after, b in zip(now, self._busy, strict=True))
        return round(max(0.0, machine - own) / (time.perf_counter() - self._since), 3)


def wait_until_quiet(seconds: float) -> None:
    """Returns once other processes leave the cores alone, or after ``seconds``."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        foreign = ForeignCPU()
        time.sleep(1)
        if (foreign.cores() or 0.0) < 0.1:
            return


def report(
    workload: str,
    model: str,
    peer: str,
    timed: Workload,
    seconds: Sequence[float],
    *,
    foreign: ForeignCPU,
    **more: Any,
) -> Report:
    """One line of results: the rate at the median time; spread is (worst, best).

    ``peak_rss_mb`` is that of the process since it began: for the memory of a workload
    run it alone.
    """
    median = statistics.median(seconds)
    rate = lambda s: round(timed.items / s, 2)
    return {
        "workload": workload,
        "model": model,
        "peer": peer,
        "value": rate(median),
        "unit": timed.unit,
        "spread": [rate(max(seconds)), rate(min(seconds))],
        "sec_median": round(median, 5),
        "n": len(seconds),
        "peak_rss_mb": peak_rss_mb(),
        "foreign_cpu": foreign.cores(),
    } | more


def peak_rss_mb() -> int:
    """Most memory that this process has held, in MiB."""
    try:  # not ru_maxrss, which on Linux begins with that of the parent
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    [peak] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return round(int(peak.split()[1]) / 1024)


class Lines:
    """JSON lines: to stdout, and to a file where one is asked for."""

    def __init__(self, path: Path | None):
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, row: Report) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _busy_seconds() -> tuple[float, float] | None:
    """CPU seconds of the whole machine, and of this process with its children."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None
    ticks = [int(x) for x in first.split()[1:]]
    machine = (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")
    usage = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return machine, sum(u.ru_utime + u.ru_stime for u in usage)
