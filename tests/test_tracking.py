"""Metrics files: no clock, valid JSON, cut back on resume; trackers fail early."""

import json
import math
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.rundir import RunError
from rlhf_jax.tracking import MetricsLogger, TrackingConfig, read_metrics

PLAIN = TrackingConfig()


def write(run, steps, restored_step=None):
    with MetricsLogger(run, PLAIN, restored_step=restored_step) as logger:
        for step in steps:
            logger.log(step, {"sft/loss": 1 / step}, timings={"tokens_per_s": 10.0})


def test_same_numbers_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [1, 2, 3])
    a, b = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in "ab")
    assert a == b
    assert b"tokens_per_s" not in a and b"unix_s" not in a
    timings = read_metrics(tmp_path / "a" / "timings.jsonl")
    assert [row["step"] for row in timings] == [1, 2, 3]
    assert timings[0]["tokens_per_s"] == 10.0
    assert timings[0]["unix_s"] <= timings[2]["unix_s"]


def test_numbers_come_back_exactly(tmp_path):
    values = {
        "python": 0.1,
        "integer": 3,
        "numpy": np.float32(0.1),
        "jax": jnp.float32(1 / 3),
        "nan": float("nan"),
        "up": jnp.inf,
        "down": -np.inf,
    }
    with MetricsLogger(tmp_path, PLAIN, restored_step=None) as logger:
        logger.log(1, values)
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    raw = json.loads(line, parse_constant=refuse)
    assert (raw["nan"], raw["up"], raw["down"]) == ("NaN", "Infinity", "-Infinity")
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["nan"]) and math.isnan(float(values.pop("nan")))
    assert all(row[name] == float(value) for name, value in values.items())
    assert row["step"] == 1


def test_lines_are_on_disk_at_once(tmp_path):
    with MetricsLogger(tmp_path, PLAIN, restored_step=None) as logger:
        logger.log(1, {"sft/loss": 1.0})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_resume_cuts_back_to_the_restored_step(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "sft/lo')  # killed while writing
    write(tmp_path, [3, 4], restored_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    timings = read_metrics(tmp_path / "timings.jsonl")
    assert [row["step"] for row in timings] == [1, 2, 3, 4]


def test_resume_from_step_0_keeps_its_lines(tmp_path):
    write(tmp_path, [1])
    with MetricsLogger(tmp_path, PLAIN, restored_step=None) as logger:
        logger.log(0, {"sft/loss": 9.0})
    write(tmp_path, [1], restored_step=0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["sft/loss"] for row in rows] == [9.0, 1.0]


def test_a_run_from_the_start_has_empty_files(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("line", ["{", "[1]", '{"a": 1}', '{"step": 1, "a": "x"}'])
def test_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_metrics(path)
    with pytest.raises(RunError, match=r"metrics\.jsonl:2"):
        MetricsLogger(tmp_path, PLAIN, restored_step=1)
    assert path.read_text().endswith('{"step": 3}\n')  # nothing was deleted


@pytest.mark.parametrize(
    "metrics, what",
    [({"a": "x"}, "a: 'x'"), ({"a": jnp.ones(2)}, "a: "), ({"step": 1}, '"step"')],
)
def test_what_is_no_metric_is_refused(tmp_path, metrics, what):
    with MetricsLogger(tmp_path, PLAIN, restored_step=None) as logger:
        with pytest.raises(RunError, match=what):
            logger.log(1, metrics)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "package, config",
    [
        ("tensorboardX", TrackingConfig(tensorboard=True)),
        ("wandb", TrackingConfig(wandb_project="rlhf")),
    ],
)
def test_missing_tracker_changes_nothing(tmp_path, monkeypatch, package, config):
    write(tmp_path, [1])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RunError, match=f"pip install {package}"):
        MetricsLogger(tmp_path, config, restored_step=None)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_wandb_gets_every_number(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finish"),
    )
    fake = types.SimpleNamespace(init=lambda **kw: calls.append(kw) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = TrackingConfig(wandb_project="rlhf")
    with MetricsLogger(tmp_path, config, restored_step=None) as logger:
        logger.log(1, {"sft/loss": jnp.float32(2)}, timings={"tokens_per_s": 5})
    assert calls == [
        {"project": "rlhf", "name": tmp_path.name, "dir": str(tmp_path)},
        (1, {"sft/loss": 2.0, "time/tokens_per_s": 5.0}),
        "finish",
    ]


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, logdir, purge_step):
            calls.append((logdir, purge_step))

        def add_scalar(self, *args):
            calls.append(args)

        def close(self):
            calls.append("close")

    fake = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    config = TrackingConfig(tensorboard=True)
    with MetricsLogger(tmp_path, config, restored_step=4) as logger:
        logger.log(5, {"sft/loss": 2.0})
    board = str(tmp_path / "tensorboard")
    assert calls == [(board, 5), ("sft/loss", 2.0, 5), "close"]


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    config = TrackingConfig(tensorboard=True)
    with MetricsLogger(tmp_path, config, restored_step=None) as logger:
        logger.log(1, {"sft/loss": 2.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 0


def test_empty_project_is_refused():
    with pytest.raises(ValueError, match="wandb_project"):
        TrackingConfig(wandb_project="")


@pytest.mark.fault(8)
def test_a_limit_on_the_size_of_files(tmp_path):
    """The line that does not fit is named; a resumed run goes on before it."""
    code = f"""
import resource
from rlhf_jax.rundir import RunError
from rlhf_jax.tracking import MetricsLogger, TrackingConfig
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
logger = MetricsLogger({str(tmp_path)!r}, TrackingConfig(), restored_step=None)
try:
    for step in range(1, 100):
        logger.log(step, {{"loss": 0.5}})
except RunError as error:
    print(error)
import os
os._exit(0)  # as the file cannot be closed, either
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot be written (File too large)" in run.stdout, run.stderr
    before = read_metrics(tmp_path / "metrics.jsonl")
    assert 1 < len(before) < 99
    with MetricsLogger(tmp_path, TrackingConfig(), restored_step=2) as logger:
        logger.log(3, {"loss": 0.25})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
