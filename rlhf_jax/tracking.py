"""Metrics on disk, and on the trackers asked for.

``metrics.jsonl`` has no clock in it: the same seed twice gives the same file, byte for
byte. Whatever depends on the machine (seconds, tokens a second) goes to
``timings.jsonl``, which is outside that promise.
"""

import dataclasses
import importlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlhf_jax.processes import is_first
from rlhf_jax.rundir import RunError

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = False  # event files in the run directory
    wandb_project: str | None = None  # W&B project, None: not sent

    def __post_init__(self) -> None:
        if self.wandb_project == "":
            raise ValueError("wandb_project: name a project, or leave the option out")


def _import(package: str, option: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RunError(
            f"{option}: needs the package {package}: pip install {package}, or leave "
            f"the option out"
        ) from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads a metrics.jsonl or timings.jsonl. No reference.

    Args:
      path: the file.

    Returns:
      One dict a line, with ``step`` (int) and floats, NaN and ±Inf among them. A last
      line without its newline, which a killed process leaves, does not count.

    Raises:
      RunError: no such file, or a line that is no such dict.

    >>> read_metrics("no/metrics.jsonl")
    Traceback (most recent call last):
    rlhf_jax.rundir.RunError: no/metrics.jsonl: no such file: check the path of the run
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file: check the path of the run") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({k: v if k == "step" else float(v) for k, v in row.items()})
            int(row["step"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path}:{number}: not a line of metrics: {line[:60]!r}"
            ) from error
    return rows


def _encode(step: int, values: Mapping[str, Any]) -> str:
    """One line. JSON has no NaN: "NaN", "Infinity" and "-Infinity" are strings."""
    row: dict[str, Any] = {"step": step}
    for name, value in values.items():
        if name == "step":
            raise RunError('a metric cannot be called "step": rename it')
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise RunError(f"{name}: {value!r} is not a number") from error
        row[name] = number if math.isfinite(number) else json.dumps(number).strip('"')
    return json.dumps(row) + "\n"


def _open_from(path: Path, restored_step: int | None) -> IO[str]:
    """Opens for appending, without the lines after the restored step."""
    if not is_first():
        return open(os.devnull, "a", encoding="utf-8")
    kept = ""
    if restored_step is not None and path.exists():
        rows = read_metrics(path)
        lines = path.read_text(encoding="utf-8").split("\n")
        pairs = zip(rows, lines, strict=False)  # lines ends with what no newline ended
        kept = "".join(f"{x}\n" for row, x in pairs if row["step"] <= restored_step)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(kept, encoding="utf-8")
    half.replace(path)
    return path.open("a", encoding="utf-8")


class MetricsLogger:
    """Appends metrics to the files of a run, and to the trackers asked for.

    No reference. A context manager: on leaving, files and trackers are closed. Of
    several processes the first one writes; those of the others lead nowhere.

    Args:
      directory: the run directory.
      config: which trackers.
      restored_step: the step of the restored checkpoint: later lines are deleted, as
        those steps are made again. None: the files start empty.

    Raises:
      RunError: a tracker's package is missing (with the command that installs it).

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> with MetricsLogger(run, TrackingConfig(), restored_step=None) as logger:
    ...     logger.log(1, {"sft/loss": 2.5}, timings={"tokens_per_s": 1e4})
    >>> (run / "metrics.jsonl").read_text()
    '{"step": 1, "sft/loss": 2.5}\\n'
    """

    def __init__(
        self,
        directory: str | Path,
        config: TrackingConfig,
        *,
        restored_step: int | None,
    ) -> None:
        directory = Path(directory)
        config = config if is_first() else TrackingConfig()
        tensorboard = wandb = None
        # Both before the first file changes: a missing package changes nothing.
        if config.tensorboard:
            tensorboard = _import("tensorboardX", "--tensorboard")
        if config.wandb_project is not None:
            wandb = _import("wandb", "--wandb-project")
        self._metrics = _open_from(directory / METRICS_FILE, restored_step)
        self._timings = _open_from(directory / TIMINGS_FILE, restored_step)
        self._board = self._wandb = None
        if tensorboard is not None:
            self._board = tensorboard.SummaryWriter(
                str(directory / "tensorboard"),
                purge_step=None if restored_step is None else restored_step + 1,
            )
        if wandb is not None:
            self._wandb = wandb.init(
                project=config.wandb_project, name=directory.name, dir=str(directory)
            )

    def log(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        timings: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one line of metrics and one of timings.

        Args:
          step: counts from the start of the stage.
          metrics: name → number (Python, NumPy or a JAX scalar).
          timings: what the clock says; a Unix time ``unix_s`` is added.

        Raises:
          RunError: a value that is no number, or no room on the disk.
        """
        metrics_line = _encode(step, metrics)
        clock = {"unix_s": time.time(), **(timings or {})}
        timings_line = _encode(step, clock)
        for file, line in (
            (self._metrics, metrics_line),
            (self._timings, timings_line),
        ):
            try:
                file.write(line)
                file.flush()
            except OSError as error:
                raise RunError(
                    f"{file.name}: step {step} cannot be written ({error.strerror}): "
                    "make room, and resume from the last checkpoint"
                ) from error
        values = {k: float(v) for k, v in metrics.items()}
        values |= {f"time/{k}": float(v) for k, v in (timings or {}).items()}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._timings.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
