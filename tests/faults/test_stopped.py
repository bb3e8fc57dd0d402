"""SIGTERM and SIGINT: saved at that step, with an exit code that says what to do."""

import signal
import time

import pytest
from faults import stages

from rlhf_jax.stopping import TRY_AGAIN

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.slow
@pytest.mark.fault(4)
@pytest.mark.parametrize(
    "stage, signals", [("sft", [TERM]), ("reward", [INT]), ("ppo", [TERM, TERM])]
)
def test_asked_to_stop(whole, tmp_path, stage, signals):
    want, run_dir = whole.outcome(stage), tmp_path / "run"
    script = whole.start(stage, run_dir)
    stages.wait_for_step(script, run_dir, 4)
    start = time.monotonic()
    for number in signals:
        script.signal(number)
    assert script.wait() == TRY_AGAIN
    assert time.monotonic() - start < 5
    saved = stages.outcome(run_dir)  # whole, by its hashes
    assert 4 <= saved.step < stages.UPDATES
    shown = (tmp_path / "run.txt").read_text()
    name = signals[0].name
    assert f"stopped by {name}, saved at {saved.step}/{stages.UPDATES}" in shown
    assert "Traceback" not in shown
    assert whole.start(stage, run_dir, resume=True).wait() == 0
    assert stages.outcome(run_dir) == want
    assert stages.leftovers(run_dir) == []


@pytest.mark.slow
@pytest.mark.fault(4)
def test_asked_twice_by_hand_it_ends_at_once(whole, tmp_path):
    want, run_dir = whole.outcome("sft"), tmp_path / "run"
    script = whole.start("sft", run_dir)
    stages.wait_for_step(script, run_dir, 8)
    start = time.monotonic()
    while script.process.is_alive():
        script.signal(INT)
        time.sleep(0.01)
    assert script.wait() in (-INT, TRY_AGAIN)  # the first may have been enough
    assert time.monotonic() - start < 5
    stages.outcome(run_dir)  # the last checkpoint is whole
    assert whole.start("sft", run_dir, resume=True).wait() == 0
    assert stages.outcome(run_dir) == want
