"""How processes join; and two, each with half of the devices, update as one does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pairs import free_address

from rlhf_jax import parallel, processes
from rlhf_jax.errors import UserError

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


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"PROCESSES": "2", "PROCESS": "1"}, "RLHF_COORDINATOR = None, .*=auto on a"),
        ({"COORDINATOR": "host:1", "PROCESSES": "2"}, "RLHF_PROCESS = None"),
        ({"COORDINATOR": "host:1", "PROCESSES": "two"}, "RLHF_PROCESSES=two: expected"),
        (
            {"COORDINATOR": "host:1", "PROCESS": "-1"},
            "RLHF_PROCESS=-1: expected an int",
        ),
        ({"COORDINATOR": "h:1", "PROCESSES": "2", "PROCESS": "2"}, "expected 0 to 1"),
        ({"HEARTBEAT": "4"}, "RLHF_HEARTBEAT=4: expected an integer ≥ 5"),
    ],
)
def test_what_does_not_say_where_the_others_are(given, complaint, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(f"RLHF_{name}", value)
    with pytest.raises(UserError, match=complaint):
        processes.initialize()
        processes.heartbeat_s()


def test_devices_of_processes_that_have_not_joined_are_refused(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 4)
    with pytest.raises(UserError, match="not joined the others: .*=auto"):
        parallel.local_devices()


def test_the_devices_of_a_run_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("rlhf_jax.processes.count", lambda: 2)
    with pytest.raises(UserError, match="devices = 3: each of 2 processes has 8 cpu"):
        parallel.local_devices(3)
    with pytest.raises(UserError, match="set JAX_NUM_CPU_DEVICES=9"):
        parallel.local_devices(18)


def test_an_error_of_what_one_does_alone_is_as_it_was():
    def fail():
        raise UserError("no room")

    with pytest.raises(UserError, match="^no room$"):
        processes.by_first(fail)
