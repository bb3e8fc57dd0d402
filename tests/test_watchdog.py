"""A process that dies or stands still is named by the others, in time.

All cases run at the same time: most of it is waiting.
"""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

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
CASES = (*HIT, "mend", "defect", "leave", "stall", "short")


@dataclasses.dataclass
class Case:
    """Two processes, and when what happened to them."""

    name: str
    folder: Path
    running: list[subprocess.Popen]
    hit_at: float | None = None
    ended_at: dict[int, float] = dataclasses.field(default_factory=dict)

    def error(self, process: int) -> str:
        return (self.folder / f"{process}.err").read_text()

    def last(self, process: int) -> str:
        return self.error(process).splitlines()[-1]

    def code(self, process: int) -> int | None:
        return self.running[process].poll()


def start(name: str, folder: Path) -> Case:
    folder.mkdir()
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        address = f"localhost:{listening.getsockname()[1]}"
    own = {
        "PYTHONPATH": str(TESTS.parent),
        "JAX_NUM_CPU_DEVICES": "1",
        "RLHF_COORDINATOR": address,
        "RLHF_PROCESSES": "2",
        "RLHF_HEARTBEAT": str(HEARTBEAT_S),
    }
    running = []
    for i in range(2):
        environment = os.environ | own | {"RLHF_PROCESS": str(i)}
        command = [sys.executable, TESTS / "watched.py", folder, name]
        with (folder / f"{i}.out").open("w") as out:
            with (folder / f"{i}.err").open("w") as err:
                process = subprocess.Popen(
                    command, env=environment, stdout=out, stderr=err
                )
        running.append(process)
    return Case(name, folder, running)


def look(case: Case) -> bool:
    """Hits the case once it is under way; whether all that will end has ended."""
    now = time.monotonic()
    ready = all((case.folder / f"{i}.ready").exists() for i in range(2))
    if case.name in HIT and case.hit_at is None and ready:
        process, number = HIT[case.name]
        os.kill(case.running[process].pid, number)
        case.hit_at = now
    for i in range(2):
        if i not in case.ended_at and case.code(i) is not None:
            case.ended_at[i] = now
    stopped = HIT[case.name][0] if case.name.startswith("stop") else None
    return {*case.ended_at, stopped} >= {0, 1}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    found = tmp_path_factory.mktemp("watchdog")
    all_of = {name: start(name, found / name.replace(" ", "_")) for name in CASES}
    end = time.monotonic() + 120
    try:
        while not all([look(case) for case in all_of.values()]):
            assert time.monotonic() < end, [c for c in all_of.values() if not look(c)]
            time.sleep(0.1)
    finally:
        for case in all_of.values():
            for process in case.running:
                process.kill()
                process.wait()
    return all_of


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", HIT)
def test_the_other_names_who_is_gone(cases, name):
    case, (hit, _) = cases[name], HIT[name]
    other = 1 - hit
    assert case.code(other) == 75
    assert case.hit_at is not None
    assert case.ended_at[other] - case.hit_at < HEARTBEAT_S + 10
    pid = case.running[hit].pid
    line = case.last(other)
    assert line.startswith(f"error: process {hit} ({socket.gethostname()}, pid {pid})")
    assert "run all of them again with --resume" in line
    stacks = case.folder / f"stacks.{other}.txt"
    assert str(stacks) in line
    assert "watched.py" in stacks.read_text()


def test_the_dead_first_process_is_named_at_once(cases):
    """JAX would abort here: its connection is closed."""
    case = cases["kill 0"]
    assert "has ended" in case.last(1)
    assert case.ended_at[1] - case.hit_at < HEARTBEAT_S


def test_what_a_person_can_mend_ends_all_with_its_reason(cases):
    case = cases["mend"]
    assert [case.code(0), case.code(1)] == [2, 2]
    assert case.last(1) == "error: the number of this process"
    assert case.last(0).startswith("error: process 1 (")
    assert case.last(0).endswith("has ended: the number of this process")


def test_a_defect_of_the_first_ends_all_with_its_traceback(cases):
    case = cases["defect"]
    assert [case.code(0), case.code(1)] == [1, 1]
    assert "Traceback" in case.error(0) and "ZeroDivisionError" in case.error(0)
    assert case.last(1).startswith("error: process 0 (")
    assert "has ended: ZeroDivisionError: one over" in case.last(1)


def test_who_leaves_alone_is_missed(cases):
    """An exit that the others do not take part in: nobody waits for ever."""
    case = cases["leave"]
    assert [case.code(0), case.code(1)] == [75, 75]
    assert "has not stopped" in case.error(1)


def test_a_loop_without_progress_ends(cases):
    case = cases["stall"]
    assert [case.code(0), case.code(1)] == [75, 75]
    said = case.error(0) + case.error(1)
    assert "has made no step for 3 s" in said
    assert "watched.py" in (case.folder / "stacks.0.txt").read_text()


def test_processes_that_come_to_their_end_say_nothing(cases):
    case = cases["short"]
    assert [case.code(0), case.code(1)] == [0, 0]
    for i in range(2):
        assert (case.folder / f"{i}.out").read_text().endswith("done: 40\n")
        assert "error" not in case.error(i)


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
