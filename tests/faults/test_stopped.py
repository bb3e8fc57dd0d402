"""SIGTERM and SIGINT: saved at that step, with an exit code that says what to do."""

import functools
import os
import signal
import time
from typing import Any

import pytest
from faults import stages

from experiments import keeping, loop_round, principled, quickstart, resuming, stops
from experiments.runs import ResumeConfig
from rlhf_jax.data import make_loader
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


@pytest.mark.fault(4)
def test_asked_at_the_end_of_a_stage_a_script_does_not_begin_the_next(
    tmp_path, monkeypatch, capsys
):
    """The quickstart's own loop over stages that have only a beginning and an end."""
    made = []

    def stage(name, number):
        config = ResumeConfig(tmp_path / name, resume=True)
        resuming.start_run(config)
        loader = make_loader([0], batch_size=1, seed=0, collate=list)
        with resuming.saving(config, 1, loader) as saves:
            if number is not None:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            assert saves.due(1)
        made.append(name)
        return {}

    def two(config):
        yield "sft", functools.partial(stage, "sft", None if config.resume else TERM)
        yield "reward", functools.partial(stage, "reward", None)

    monkeypatch.setattr(quickstart, "stages", two)
    monkeypatch.setattr(quickstart, "write_data", lambda path: path)
    monkeypatch.setattr(quickstart, "best_accuracy", lambda path: 1.0)
    config = quickstart.Config(tmp_path, until="reward")
    with pytest.raises(SystemExit) as stopped, stops.one_script():
        quickstart.main(config)
    assert stopped.value.code == TRY_AGAIN and made == ["sft"]
    assert "reward: stopped by SIGTERM before it began" in capsys.readouterr().err
    assert not (tmp_path / "reward").exists()

    # What is written once, where no stage is begun.
    none: Any = list
    for goes_on in (keeping.keep, loop_round.write_once, principled.keep_rows):
        path = tmp_path / f"{goes_on.__name__}.json"
        with pytest.raises(SystemExit), stops.one_script():
            stage("last", INT)
            goes_on(path, none)
        assert not path.exists()
        stage("last", INT)  # a call that is no script's is a run of its own
        goes_on(path, none)
        assert path.exists()
