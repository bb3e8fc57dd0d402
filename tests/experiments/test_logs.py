"""Metrics are read one step late, and none is lost."""

import dataclasses

import jax.numpy as jnp
import pytest

from experiments import reward_model, sft
from experiments.logs import origins, run_log
from experiments.runs import RunConfig
from rlhf_jax.data import Demonstration, make_loader
from rlhf_jax.errors import UserError
from rlhf_jax.guards import GuardConfig
from rlhf_jax.tracking import read_metrics
from rlhf_jax.types import Metrics

LOADER = make_loader(range(4), batch_size=2, seed=0, collate=list)


class Found(Metrics):
    """Says when it is read."""

    def compute(self):
        EVENTS.append("read")
        return super().compute()


EVENTS: list[str] = []


def _found(step: int) -> Metrics:
    return Found(**vars(Metrics.of({"loss": (10 * step, 1)})))


@pytest.fixture(autouse=True)
def no_events():
    EVENTS.clear()


def _lines(folder):
    return read_metrics(folder / "metrics.jsonl")


def test_a_line_is_read_when_the_next_step_is_under_way(tmp_path):
    with run_log("toy", RunConfig(tmp_path), 3, LOADER, None, loss="loss") as log:
        for step in (1, 2, 3):
            EVENTS.append("step")
            log.add(step, _found(step), tokens=8, rows=())
            if step == 2:
                log.also({"gold": 1.0})
    assert EVENTS == ["step", "step", "read", "step", "read", "read"]
    assert _lines(tmp_path) == [
        {"step": 1, "loss": 10},
        {"step": 2, "loss": 20, "gold": 1},
        {"step": 3, "loss": 30},
    ]


def test_lines_that_are_not_due_are_never_read(tmp_path):
    with run_log("toy", RunConfig(tmp_path), 5, LOADER, None, 2, loss="loss") as log:
        for step in range(1, 6):
            log.add(step, _found(step), tokens=8, rows=())
            assert log.pending == (step in (2, 4, 5))
    assert [row["step"] for row in _lines(tmp_path)] == [2, 4, 5]
    assert EVENTS == ["read"] * 3


def test_every_step_is_looked_at_when_the_next_one_is_under_way(tmp_path, monkeypatch):
    """Also those without a line; the last one when the run is left."""

    def check(guard, step, metrics, *, rows, scores, stop):
        assert float(metrics.sums["loss"]) == 10 * step
        EVENTS.append(f"look at {step}, rows {rows}, {'stop' if stop else 'go on'}")

    monkeypatch.setattr("rlhf_jax.guards.Guard.check", check)
    with run_log("toy", RunConfig(tmp_path), 9, LOADER, None, 9, loss="loss") as log:
        for step in (1, 2, 3):
            EVENTS.append("step")
            log.add(step, _found(step), tokens=8, rows=[step])
    assert EVENTS == [
        "step",
        "step",
        "look at 1, rows [1], stop",
        "step",
        "look at 2, rows [2], stop",
        "look at 3, rows [3], go on",
    ]


def test_a_stop_is_raised_once(tmp_path, capsys):
    found = lambda: Metrics.of({"loss": (jnp.nan, 1), "optim/skipped": (1, 1)})
    guard = GuardConfig(max_skipped=2)
    with pytest.raises(UserError, match="step 2, rows 0, 2: loss = nan") as error:
        with run_log("toy", RunConfig(tmp_path, guard=guard), 9, LOADER, None) as log:
            for step in range(1, 10):
                log.add(step, found(), tokens=8, rows=[0, step])
    assert error.value.__context__ is None
    # Step 3 is under way then, and is going to be made again.
    assert [row["step"] for row in _lines(tmp_path)] == [1, 2]
    assert len((tmp_path / "faults.jsonl").read_text().splitlines()) == 2
    assert "updates were skipped" not in capsys.readouterr().out  # it has failed


def test_rows_are_named_by_their_origins(tmp_path):
    """Of a packed row by those of all that share it; what has none by its number."""
    one, other = (Demonstration((), (1,), f"a.jsonl:{i}") for i in (1, 2))
    assert origins([one, (one, other), "text"], [2, 1, 0]) == [
        "2",
        "a.jsonl:1",
        "a.jsonl:2",
        "a.jsonl:1",
    ]


def test_the_last_line_is_written_after_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with run_log("toy", RunConfig(tmp_path), 3, LOADER, None, loss="loss") as log:
            log.add(1, _found(1), tokens=8, rows=())
            log.add(2, _found(2), tokens=8, rows=())
            raise KeyboardInterrupt
    assert [row["loss"] for row in _lines(tmp_path)] == [10, 20]


def test_a_rate_is_of_the_steps_that_were_waited_for(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 4.0])  # at the start, then at each reading
    monkeypatch.setattr("experiments.logs.time.perf_counter", lambda: next(clock))
    with run_log("toy", RunConfig(tmp_path), 2, LOADER, None, loss="loss") as log:
        log.add(1, _found(1), tokens=8, rows=())
        log.add(2, _found(2), tokens=16, rows=())
    rows = read_metrics(tmp_path / "timings.jsonl")
    assert [row["tokens_per_s"] for row in rows] == [4, 8]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_scripts_go_on_before_they_read(toys, tmp_path, stage, monkeypatch):
    """Nothing is read between two updates but where the run is saved or evaluated."""
    module = {"sft": sft, "reward": reward_model}[stage]
    config = getattr(toys, stage)(tmp_path, save_every=9, eval_every=9)
    on_batches = module.on_batches

    def watched(step, *args, **options):
        call = on_batches(step, *args, **options)
        if not options.get("donate_state"):
            return call

        def run(*trees):
            EVENTS.append("step")
            state, metrics = call(*trees)
            return state, Found(**vars(metrics))

        return run

    monkeypatch.setattr(module, "on_batches", watched)
    module.main(dataclasses.replace(config, epochs=2))
    rows = _lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 4
    steps = ["step", *["step", "read"] * (len(rows) - 1), "read"]
    assert EVENTS == steps
