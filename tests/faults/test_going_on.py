"""Resuming: the same examples, the same inputs, one owner, and nothing done twice."""

import dataclasses
import json
import shutil
import signal
import time

import pytest
from faults import stages
from stage_toys import Toys

from rlhf_jax.data import Loader
from rlhf_jax.errors import UserError
from rlhf_jax.lock import LockedError, take_lock


@pytest.fixture
def toys(whole) -> Toys:
    return Toys(whole.root)


@pytest.fixture
def seen(monkeypatch):
    """The rows of every batch that was asked for."""
    rows, ask = [], Loader.__next__

    def watched(self):
        batch = ask(self)
        rows.append(self.rows.tolist())
        return batch

    monkeypatch.setattr(Loader, "__next__", watched)
    return rows


@pytest.mark.slow
@pytest.mark.fault(2)
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_stopped_after_each_step(toys, tmp_path, seen, monkeypatch, stage):
    """Two updates an epoch, in two micro-batches; two epochs of PPO an iteration."""
    few = {"epochs": 3} if stage == "sft" else {"episodes": 32}
    make = lambda name, **more: dataclasses.replace(
        stages.config(toys, stage, tmp_path / name), **few, **more
    )
    main = stages.MAINS[stage]
    main(make("whole"))
    want, count = list(seen), len(seen)
    seen.clear()
    # Asked to stop as soon as a step is through, whichever it is.
    with monkeypatch.context() as patch:
        patch.setattr("experiments.resuming.stop_signals", always)
        for step in range(1, count):
            with pytest.raises(SystemExit) as stopped:
                main(make("stopped", resume=step > 1))
            assert stopped.value.code == 75  # never 0 with work left
            assert (
                stages.checkpoint.latest_step(tmp_path / "stopped/checkpoints") == step
            )
        main(make("stopped", resume=True))
    assert seen == want
    whole, pieces = (stages.outcome(tmp_path / name) for name in ("whole", "stopped"))
    assert pieces == whole


class always:
    """`stop_signals` where somebody has asked to stop already."""

    def __enter__(self):
        return lambda: "SIGTERM"

    def __exit__(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.fault(3)
@pytest.mark.parametrize("stage", stages.MAINS)
def test_a_finished_run_is_left_as_it_is(whole, stage):
    whole.outcome(stage)
    run_dir = whole.root / f"whole-{stage}"
    content = lambda: {
        p.relative_to(run_dir): p.read_bytes()
        for p in run_dir.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    before = content()
    assert whole.start(stage, run_dir, resume=True).wait() == 0
    shown = run_dir.with_name(f"{run_dir.name}.txt").read_text()
    assert f"nothing to do ({stages.UPDATES}/{stages.UPDATES}" in shown
    assert content() == before


@pytest.mark.slow
@pytest.mark.fault(9)
def test_two_runs_on_one_directory(whole, tmp_path):
    run_dir = tmp_path / "run"
    first = whole.start("sft", run_dir)
    stages.wait_for_step(first, run_dir, 1)
    first.signal(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(LockedError, match=f'"pid": {first.process.pid}'):
        take_lock(run_dir)
    second = whole.start("sft", run_dir, resume=True)
    assert second.wait() == 2
    assert "another process has it" in (tmp_path / "run.txt").read_text()
    assert time.monotonic() - start < 5 + 5  # the second one's imports are no part
    first.signal(signal.SIGKILL)
    first.wait()
    assert whole.start("sft", run_dir, resume=True).wait() == 0
    assert stages.outcome(run_dir) == whole.outcome("sft")


@pytest.mark.fault(11)
@pytest.mark.parametrize("what", ["data", "tokenizer", "policy", "config"])
def test_resumed_with_something_else(toys, tmp_path, what):
    """Refused by name before anything is trained; accepted by name."""
    rows = [{"prompt": "a", "completion": f" film {i}"} for i in range(18)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(toys.root / "sft", tmp_path / "policy")
    config = stages.config(
        toys,
        "sft",
        tmp_path / "run",
        policy=tmp_path / "policy",
        data=dataclasses.replace(toys.data("reviews", 16), path=str(data)),
    )
    config = dataclasses.replace(config, epochs=1)
    stages.MAINS["sft"](config)
    names = [what]
    if what == "data":
        data.write_text(data.read_text().replace("film 3", "book 3"))
    elif what == "tokenizer":
        file = tmp_path / "policy/tokenizer/tokenizer.json"
        values = json.loads(file.read_text())
        values["model"]["merges"] = values["model"]["merges"][:-1]
        file.write_text(json.dumps(values))
    elif what == "policy":
        shutil.rmtree(tmp_path / "policy")
        shutil.copytree(toys.root / "whole-sft", tmp_path / "policy")
    else:
        config = dataclasses.replace(config, batch_size=4)
        names = ["batch_size"]
    resumed = dataclasses.replace(config, resume=True)
    with pytest.raises(UserError, match=f"--accept {' '.join(names)}$") as error:
        stages.MAINS["sft"](resumed)
    assert all(f"{name}: " in str(error.value) for name in names)
    accepted = dataclasses.replace(resumed, accept=tuple(names))
    stages.MAINS["sft"](accepted)
    [line] = (tmp_path / "run/changes.jsonl").read_text().splitlines()
    assert all(name in line for name in names)
    stages.MAINS["sft"](resumed)  # it is the run's own now
