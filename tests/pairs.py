"""Two processes of one run, each with its output in a file."""

import dataclasses
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TESTS = Path(__file__).parent
JOINS = r"INFO:(\S+ \S+),\d+:jax\._src\.distributed:\d+: Connecting"


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return f"localhost:{listening.getsockname()[1]}"


@dataclasses.dataclass
class Pair:
    """Two processes under way, or ended."""

    folder: Path
    running: list[subprocess.Popen]

    def pid(self, process: int) -> int:
        return self.running[process].pid

    def code(self, process: int) -> int | None:
        return self.running[process].poll()

    def codes(self) -> list[int | None]:
        return [self.code(0), self.code(1)]

    def output(self, process: int) -> str:
        return (self.folder / f"{process}.out").read_text()

    def error(self, process: int) -> str:
        return (self.folder / f"{process}.err").read_text()

    def last(self, process: int) -> str:
        return self.error(process).splitlines()[-1]

    def seconds_together(self, process: int) -> float:
        """From when both had started up to the last line of its errors."""
        times = (re.findall(JOINS, self.error(i))[0] for i in range(2))
        began = max(time.mktime(time.strptime(t, "%Y-%m-%d %H:%M:%S")) for t in times)
        return (self.folder / f"{process}.err").stat().st_mtime - began

    def send(self, process: int, number: int) -> None:
        os.kill(self.pid(process), number)

    def wait(self, process: int, seconds: float = 150) -> int:
        """Its exit code."""
        try:
            return self.running[process].wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(self.error(0) + self.error(1)) from error

    def kill(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def start_pair(
    folder: Path,
    commands: Sequence[Sequence[object]],
    *,
    heartbeat_s: int,
    devices: int,
    inside: Sequence[Path | None] = (None, None),
) -> Pair:
    """Starts two processes, each with so many devices, inside of folders."""
    folder.mkdir()
    own = {
        "PYTHONPATH": f"{TESTS / 'experiments'}:{TESTS.parent}",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
        "JAX_LOGGING_LEVEL": "INFO",  # says when it joins the other
        "RLHF_COORDINATOR": free_address(),
        "RLHF_PROCESSES": "2",
        "RLHF_HEARTBEAT": str(heartbeat_s),
    }
    running = []
    for i, command in enumerate(commands):
        environment = os.environ | own | {"RLHF_PROCESS": str(i)}
        with (folder / f"{i}.out").open("w") as out:
            with (folder / f"{i}.err").open("w") as err:
                text = list(map(str, command))
                given = {"env": environment, "stdout": out, "stderr": err}
                running.append(subprocess.Popen(text, cwd=inside[i], **given))
    return Pair(folder, running)


def wait_until(true: Callable[[], bool], pair: Pair, seconds: float = 150) -> None:
    """Returns when it is so; fails where a process ends before."""
    end = time.monotonic() + seconds
    while not true():
        said = pair.error(0) + pair.error(1)
        assert time.monotonic() < end and pair.codes() == [None, None], said
        time.sleep(0.05)
