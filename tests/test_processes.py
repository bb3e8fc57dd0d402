"""Two processes, each with half of the devices and of the rows, update as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent


def start(address: str, processes: int, index: int, result: Path) -> subprocess.Popen:
    arguments = map(str, (address, processes, index, result))
    return subprocess.Popen(
        [sys.executable, TESTS / "process.py", *arguments],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return f"localhost:{listening.getsockname()[1]}"


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """What one process and the first of two have found."""
    found, address = tmp_path_factory.mktemp("processes"), free_address()
    running = [
        start(address, 1, 0, found / "one.npz"),
        start(address, 2, 0, found / "two.npz"),
        start(address, 2, 1, found / "second.npz"),
    ]
    try:
        for process in running:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in running:
            process.kill()
    return np.load(found / "one.npz"), np.load(found / "two.npz")


def test_two_processes_update_as_one(updates):
    one, two = updates
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-6)
    for kind in ("sft", "ppo"):
        assert one[f"['{kind}'][1]['optim/grad_norm']"] > 0.01
