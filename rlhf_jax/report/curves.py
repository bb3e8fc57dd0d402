"""The curves of a run, and ``report.png``: all of them in one picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from rlhf_jax.processes import is_first
from rlhf_jax.report.panels import PANELS, Panel
from rlhf_jax.rundir import RunError
from rlhf_jax.tracking import METRICS_FILE, read_metrics

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> (steps, values)

REPORT_FILE = "report.png"
COLOURS = (  # told apart by colour-blind readers too
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#aa4499",
    "#997700",
    "#555555",
)
_COLUMNS = 3
_SMOOTH_FROM = 60  # points from which a curve gets a moving average


class Line(NamedTuple):
    """One curve of a small plot."""

    steps: np.ndarray
    values: np.ndarray
    colour: str
    label: str | None = None  # in the picture's own legend
    dashed: bool = False


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
    files = metrics_files(run_dir)
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


def metrics_files(run_dir: Path) -> list[Path]:
    """Those of a run and of its stages, one directory below."""
    patterns = METRICS_FILE, f"*/{METRICS_FILE}"
    return [file for p in patterns for file in sorted(run_dir.glob(p))]


def moving_average(values: np.ndarray) -> np.ndarray:
    """Mean over the finite values of a centred window, a twentieth of the curve."""
    reach = max(len(values) // 40, 1)
    finite = np.isfinite(values)
    ones = np.ones(2 * reach + 1)
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    count = np.convolve(finite.astype(float), ones, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def panel_lines(panel: Panel, runs: Sequence[Curves]) -> Iterator[Line]:
    """The curves of a panel: a colour a metric, or a colour a run where there are more.

    Args:
      panel: which metrics.
      runs: `Curves` of each run.
    """
    for number, curves in enumerate(runs):
        shown = [name for name in panel.metrics if name in curves]
        for index, name in enumerate(shown):
            alone = len(runs) == 1
            colour = COLOURS[index if alone else number]
            label = panel.metrics[name] if alone and len(shown) > 1 else None
            dashed = not alone and index > 0
            steps, values = curves[name]
            yield Line(steps, values, colour, label, dashed)


def draw_lines(axes: Axes, lines: Sequence[Line], *, size: float = 9) -> None:
    """Curves with their axes; long ones pale, with their moving average on top."""
    for steps, values, colour, label, dashed in lines:
        style = {
            "color": colour,
            "marker": "o" if len(steps) <= 20 else "",
            "markersize": 3.5,
            "linestyle": "--" if dashed else "-",
        }
        if len(steps) < _SMOOTH_FROM:
            axes.plot(steps, values, label=label, linewidth=1.6, **style)
        else:
            axes.plot(steps, values, linewidth=0.8, alpha=0.3, **style)
            average = moving_average(values)
            axes.plot(steps, average, label=label, linewidth=1.8, **style)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    plain_axes(axes, size=size)


def plain_axes(axes: Axes, *, size: float) -> None:
    """Two thin axes and a pale grid."""
    axes.tick_params(labelsize=size - 0.5, color="#b3b3b3")
    axes.grid(color="#ebebeb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b3b3b3")


def smoothed(curves: Curves) -> bool:
    """Whether one of the curves is long enough for a moving average."""
    return any(len(steps) >= _SMOOTH_FROM for steps, _ in curves.values())


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
    panels = drawn_panels([curves], str(run_dir))
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(16, 0.8 + 3.3 * rows), layout=layout)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        lines = list(panel_lines(panel, [curves]))
        draw_lines(axes, lines)
        axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
        axes.set_ylabel(panel.ylabel, fontsize=9)
        axes.set_xlabel(panel.xlabel, fontsize=9)
        if len(lines) > 1:
            axes.legend(fontsize=8.5, frameon=False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    title = run_dir.resolve().name
    if smoothed(curves):
        title += "   (pale: every step, bold: moving average)"
    figure.suptitle(title, fontsize=13, parse_math=False)
    path = run_dir / REPORT_FILE
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}): free space or copy the run"
        ) from error
    return path


def drawn_panels(runs: Sequence[Curves], named: str) -> list[Panel]:
    """Panels of which a run has a metric.

    Raises:
      RunError: there is none.
    """
    have = {name for curves in runs for name in curves}
    panels = [p for p in PANELS if have & p.metrics.keys()]
    if not panels:
        raise RunError(
            f"{named}: none of its metrics has a panel: expected one of "
            f"{', '.join(name for panel in PANELS for name in panel.metrics)}"
        )
    return panels
