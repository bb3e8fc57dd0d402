"""A run's curves in one picture: ``python -m rlhf_jax.report RUN [RUN …]``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from rlhf_jax.processes import is_first
from rlhf_jax.rundir import RunError
from rlhf_jax.tracking import METRICS_FILE, read_metrics

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> (steps, values)

REPORT_FILE = "report.png"
_COLUMNS = 3
_SMOOTH_FROM = 60  # points from which a curve gets a moving average
_COLOURS = ("#0072B2", "#D55E00", "#009E73")  # told apart by colour-blind readers too


class Panel(NamedTuple):
    """One small plot: its curves are metrics of one unit."""

    title: str
    ylabel: str
    metrics: dict[str, str]  # metric -> label in the legend
    xlabel: str = "policy update"


PANELS = (
    Panel(
        "Supervised fine-tuning: loss",
        "nats a token",
        {"sft/loss": "train", "sft/eval_loss": "held out"},
        "optimiser step",
    ),
    Panel(
        "Reward model: loss",
        "nats a comparison",
        {"reward/loss": "train", "reward/eval_loss": "held out"},
        "optimiser step",
    ),
    Panel(
        "Reward model: accuracy",
        "share of comparisons",
        {"reward/accuracy": "train", "reward/eval_accuracy": "held out"},
        "optimiser step",
    ),
    Panel(
        "Preferences: loss",
        "loss a pair",
        {"preference/loss": "train", "preference/eval_loss": "held out"},
    ),
    Panel(
        "Preferences: accuracy",
        "share of pairs",
        {"preference/accuracy": "train", "preference/eval_accuracy": "held out"},
    ),
    Panel(
        "Preferences: margin",
        "implied score",
        {"preference/margin": "train", "preference/eval_margin": "held out"},
    ),
    Panel("Distillation: loss", "nats a token", {"distillation/loss": "train"}),
    Panel("KL to the teacher", "nats a response", {"distillation/kl": "KL"}),
    Panel("Learned reward", "score a response", {"objective/score": "learned"}),
    Panel("Gold reward", "score a response", {"objective/gold": "gold"}),
    Panel("KL to the reference", "nats a response", {"objective/kl": "KL"}),
    Panel("Entropy", "nats a response", {"objective/entropy": "entropy"}),
    Panel("Response length", "tokens", {"rollout/response_length": "length"}),
    Panel("Responses that ended", "share of responses", {"rollout/ended": "ended"}),
    Panel("Clipped ratios", "share of tokens", {"policy/clip_fraction": "clipped"}),
    Panel("Policy loss", "advantage units", {"policy/loss": "policy"}),
    Panel("Value loss", "score²", {"value/loss": "value"}),
)


def read_curves(run_dir: str | Path) -> Curves:
    """Reads the metrics of a run and of its stages, one directory below.

    No reference.

    Args:
      run_dir: a directory with a metrics.jsonl, or with sub-directories that have one.

    Returns:
      metric → (steps int64, values float64) of those that a panel draws, in the order
      of the file.

    Raises:
      RunError: no metrics.jsonl there, a bad line, or a metric in two of the files.

    >>> read_curves("no-run")
    Traceback (most recent call last):
    rlhf_jax.rundir.RunError: no-run: no metrics.jsonl here or one directory below: ...
    """
    run_dir = Path(run_dir)
    files = [
        file
        for pattern in (METRICS_FILE, f"*/{METRICS_FILE}")
        for file in sorted(run_dir.glob(pattern))
    ]
    if not files:
        raise RunError(
            f"{run_dir}: no {METRICS_FILE} here or one directory below: name the "
            f"directory that was given as --run-dir"
        )
    # Others, such as optim/grad_norm, every stage may have.
    drawn = {name for panel in PANELS for name in panel.metrics}
    curves: Curves = {}
    for file in files:
        rows = read_metrics(file)
        for name in dict.fromkeys(k for row in rows for k in row if k in drawn):
            if name in curves:
                raise RunError(f"{file}: {name} is in another stage's metrics too")
            pairs = [(row["step"], row[name]) for row in rows if name in row]
            steps, values = zip(*pairs, strict=True)
            curves[name] = (np.array(steps, np.int64), np.array(values, np.float64))
    return curves


def _moving_average(values: np.ndarray) -> np.ndarray:
    """Mean over the finite values of a centred window, a twentieth of the curve."""
    reach = max(len(values) // 40, 1)
    finite = np.isfinite(values)
    ones = np.ones(2 * reach + 1)
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    count = np.convolve(finite.astype(float), ones, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _draw(axes: Axes, panel: Panel, curves: Curves) -> None:
    shown = [name for name in panel.metrics if name in curves]
    for colour, name in zip(_COLOURS, shown, strict=False):
        steps, values = curves[name]
        label = panel.metrics[name]
        marker = "o" if len(steps) <= 20 else ""
        line = {"color": colour, "marker": marker, "markersize": 3.5}
        if len(steps) < _SMOOTH_FROM:
            axes.plot(steps, values, label=label, linewidth=1.6, **line)
        else:
            axes.plot(steps, values, linewidth=0.8, alpha=0.3, **line)
            average = _moving_average(values)
            axes.plot(steps, average, label=label, linewidth=1.8, **line)
    axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
    axes.set_ylabel(panel.ylabel, fontsize=9)
    axes.set_xlabel(panel.xlabel, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8.5, color="0.7")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.7")
    if len(shown) > 1:
        axes.legend(fontsize=8.5, frameon=False)


def write_report(run_dir: str | Path) -> Path:
    """Draws the curves of a run into ``report.png``, 1600 pixels wide.

    No reference. A panel is drawn if one of its metrics was logged. Curves of 60 points
    or more are drawn pale, with their moving average on top; NaN and Inf leave gaps.
    Of several processes the first one draws.

    Args:
      run_dir: a directory with a metrics.jsonl, or with stages that have one.

    Returns:
      The path of the picture.

    Raises:
      RunError: no metrics there, none that a panel shows, or no right to write.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> _ = (run / "metrics.jsonl").write_text('{"step": 1, "sft/loss": 2.5}\\n')
    >>> write_report(run).name
    'report.png'
    """
    run_dir = Path(run_dir)
    if not is_first():
        return run_dir / REPORT_FILE
    curves = read_curves(run_dir)
    panels = [p for p in PANELS if any(name in curves for name in p.metrics)]
    if not panels:
        raise RunError(
            f"{run_dir}: none of its metrics has a panel: expected one of "
            f"{', '.join(name for panel in PANELS for name in panel.metrics)}"
        )
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(16, 0.8 + 3.3 * rows), layout=layout)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, curves)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    title = run_dir.resolve().name
    if any(len(steps) >= _SMOOTH_FROM for steps, _ in curves.values()):
        title += "   (pale: every step, bold: moving average)"
    figure.suptitle(title, fontsize=13)
    path = run_dir / REPORT_FILE
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}): free space or copy the run"
        ) from error
    return path


def main(run_dirs: Sequence[str]) -> int:
    """Writes the report of each run; returns the exit code. No reference.

    >>> main([])
    usage: python -m rlhf_jax.report RUN [RUN …]
    2
    """
    if not run_dirs:
        print("usage: python -m rlhf_jax.report RUN [RUN …]")
        return 2
    for run_dir in run_dirs:
        try:
            print(write_report(run_dir))
        except RunError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
