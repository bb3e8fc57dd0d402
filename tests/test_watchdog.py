"""A process that dies or stands still is named by the others, in time.

All cases run at the same time: most of it is waiting.
"""

import dataclasses
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pairs import Pair, start_pair

from rlhf_jax.watchdog import step_made, watching

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent
HEARTBEAT_S = 6
# What is done to which of the two processes; `watched.py` does the rest to itself.
HIT = {
    "kill 1": (1, signal.SIGKILL),
    "kill 0": (0, signal.SIGKILL),
    "stop 1": (1, signal.SIGSTOP),
    "stop 0": (0, signal.SIGSTOP),
}
CASES = (*HIT, "mend", "defect", "leave", "stall", "short", "first")


@dataclasses.dataclass
class Case:
    """Two processes, and when what happened to them."""

    pair: Pair
    hit_at: float = math.nan
    ended_at: dict[int, float] = dataclasses.field(default_factory=dict)


def start(name: str, folder: Path) -> Case:
    command = [sys.executable, TESTS / "watched.py", folder, name]
    given: Any = {"heartbeat_s": HEARTBEAT_S, "devices": 1}
    return Case(start_pair(folder, [command] * 2, **given))


def look(name: str, case: Case) -> bool:
    """Hits the case once it is under way; whether all that will end has ended."""
    now, pair = time.monotonic(), case.pair
    ready = all((pair.folder / f"{i}.ready").exists() for i in range(2))
    if name in HIT and math.isnan(case.hit_at) and ready:
        pair.send(*HIT[name])
        case.hit_at = now
    for i in range(2):
        if i not in case.ended_at and pair.code(i) is not None:
            case.ended_at[i] = now
    stopped = HIT[name][0] if name.startswith("stop") else None
    return {*case.ended_at, stopped} >= {0, 1}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    found = tmp_path_factory.mktemp("watchdog")
    all_of = {name: start(name, found / name.replace(" ", "_")) for name in CASES}
    end = time.monotonic() + 120
    try:
        while late := [name for name, case in all_of.items() if not look(name, case)]:
            assert time.monotonic() < end, late
            time.sleep(0.1)
    finally:
        for case in all_of.values():
            case.pair.kill()
    return all_of


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", HIT)
def test_the_other_names_who_is_gone(cases, name):
    case, (hit, _) = cases[name], HIT[name]
    pair, other = case.pair, 1 - hit
    assert pair.code(other) == 75
    assert case.ended_at[other] - case.hit_at < HEARTBEAT_S + 10
    line, who = pair.last(other), f"{socket.gethostname()}, pid {pair.pid(hit)}"
    assert line.startswith(f"error: process {hit} ({who}) at step ")
    assert "run all of them again with --resume" in line
    stacks = pair.folder / f"stacks.{other}.txt"
    assert str(stacks) in line
    assert "watched.py" in stacks.read_text()


def test_the_dead_first_process_is_named_at_once(cases):
    """JAX would abort here: its connection is closed."""
    case = cases["kill 0"]
    assert "has ended" in case.pair.last(1)
    assert case.ended_at[1] - case.hit_at < HEARTBEAT_S


def test_what_a_person_can_mend_ends_all_with_its_reason(cases):
    pair = cases["mend"].pair
    assert pair.codes() == [2, 2]
    assert pair.last(1) == "error: the number of this process"
    assert pair.last(0).startswith("error: process 1 (")
    assert pair.last(0).endswith("has ended: the number of this process")


def test_what_the_first_cannot_do_for_all_ends_all(cases):
    pair = cases["first"].pair
    assert pair.codes() == [2, 2]
    for process in range(2):
        assert pair.last(process) == "error: no room where process 0 is"


def test_a_defect_of_the_first_ends_all_with_its_traceback(cases):
    pair = cases["defect"].pair
    assert pair.codes() == [1, 1]
    assert "Traceback" in pair.error(0) and "ZeroDivisionError" in pair.error(0)
    assert pair.last(1).startswith("error: process 0 (")
    assert "has ended: ZeroDivisionError: one over" in pair.last(1)


def test_who_leaves_alone_is_missed(cases):
    """An exit that the others do not take part in: nobody waits for ever."""
    pair = cases["leave"].pair
    assert pair.codes() == [75, 75]
    assert "has not stopped" in pair.error(1)


def test_a_loop_without_progress_ends(cases):
    pair = cases["stall"].pair
    assert pair.codes() == [75, 75]
    said = pair.error(0) + pair.error(1)
    assert "has made no step for 3 s" in said
    assert "watched.py" in (pair.folder / "stacks.0.txt").read_text()


def test_processes_that_come_to_their_end_say_nothing(cases):
    pair = cases["short"].pair
    assert pair.codes() == [0, 0]
    for i in range(2):
        assert pair.output(i).endswith("done: 40\n")
        assert "error: " not in pair.error(i)


ALONE = """
import sys, time
from rlhf_jax.watchdog import step_made, watching
with watching(None, stall_s=1):
    for i in range(12):
        time.sleep(0.2)
        step_made(i)
    print("still here", flush=True)
    time.sleep(60)
"""


def test_a_process_alone_may_stall_too():
    env = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    found = subprocess.run(
        [sys.executable, "-c", ALONE], env=env, capture_output=True, text=True
    )
    assert found.returncode == 75
    assert found.stdout == "still here\n"
    assert "error: process 0 (" in found.stderr
    assert "made no step for 1 s: run all of them again" in found.stderr


def test_a_process_alone_has_no_thread_more(tmp_path):
    before = threading.active_count()
    with watching(tmp_path):
        step_made(1)
        assert threading.active_count() == before
    with pytest.raises(ValueError, match="as it is"):
        with watching(tmp_path, stall_s=60):
            assert threading.active_count() == before + 1
            raise ValueError("as it is")
    assert threading.active_count() == before
