"""What was found of a simulated crowd, as a table and a picture."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from scipy.stats import t

from rlhf_jax.feedback.report import Report
from rlhf_jax.terminal import print_table

ARMS = {
    "all": "all votes as they are",
    "consensus": "consensus of all votes",
    "careful": "votes of the careful alone",
}

BEST = "careful"  # what the others are compared with, seed by seed

Result = dict[str, Any]


def show(results: list[Result], path: Path) -> None:
    """Means over seeds, on the terminal and as Markdown."""
    careful = {r["seed"]: r["accuracy"] for r in results if r["arm"] == BEST}
    rows = []
    for arm, name in ARMS.items():
        own = [r for r in results if r["arm"] == arm]
        found = [r["accuracy"] for r in own]
        spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        count = f"{statistics.mean(r['pairs'] for r in own):,.0f}"
        each = "  ".join(f"{accuracy:.3f}" for accuracy in found)
        behind = [100 * (r["accuracy"] - careful[r["seed"]]) for r in own]
        against = "–" if arm == BEST else points(behind)
        rows.append(
            [name, count, f"{statistics.mean(found):.3f}{spread}", each, against]
        )
    columns = ["trained on", "pairs", "gold accuracy", "each seed"]
    columns.append("points more than the careful (95 %)")
    print_table("Reward models of a crowd, a part of it careless", columns, rows)
    lines = [columns, ["---"] * len(columns), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def points(found: list[float]) -> str:
    """Mean and Student's interval of differences, a seed each."""
    mean = f"{statistics.mean(found):+.1f}"
    if len(found) < 2:
        return mean
    error = statistics.stdev(found) / len(found) ** 0.5
    low, high = t.interval(0.95, len(found) - 1, statistics.mean(found), error)
    return f"{mean} ({low:+.1f} to {high:+.1f})"


def draw(report: Report, results: list[Result], careful: int, path: Path) -> None:
    """What a crowd's annotators can, and what all seeds' models can.

    Args:
      report: of the crowd.
      results: of the models.
      careful: how many of the crowd read what they rank; the others follow them.
      path: of the picture.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(11, 4.4), layout=layout)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    found = [known.ability for known in report.reliability]
    for who, (ability, known) in enumerate(zip(found, report.reliability, strict=True)):
        line = {"color": "C3" if known.careless else "C0", "linewidth": 1.6}
        left.plot([who, who], [ability.low, ability.high], **line)
        left.plot(who, ability.value, "o", markersize=4.5, **line)
    half = float(np.nanmedian([ability.value for ability in found])) / 2
    left.axhline(half, color="0.4", linewidth=1, linestyle="--")
    left.annotate("half of the median", (0, half), (0, 4), textcoords="offset points")
    left.axvspan(careful - 0.5, len(found) - 0.5, color="0.94", zorder=0)
    left.set_title("Ability of each annotator (red: named careless)", loc="left")
    left.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    left.set_xlabel("annotator; on grey those who are careless")
    left.set_ylabel("κ with the consensus of the others, 95 %")
    for place, arm in enumerate(ARMS):
        own = [r["accuracy"] for r in results if r["arm"] == arm]
        right.plot(len(own) * [place], own, "o", color="0.6", markersize=5)
        right.plot([place - 0.2, place + 0.2], 2 * [statistics.mean(own)], color="C0")
    names = [name.replace(" ", "\n", 2) for name in ARMS.values()]
    right.set_xticks(range(len(ARMS)), names)
    right.set_xlim(-0.5, len(ARMS) - 0.5)
    right.set_title("Reward models (line: mean of seeds)", loc="left")
    right.set_ylabel("accuracy on held-out pairs, by the truth")
    for axes in (left, right):
        tidy(axes)
    figure.savefig(path, dpi=100)


def tidy(axes: Axes) -> None:
    """Pale grid, no box."""
    axes.tick_params(labelsize=8.5, color="0.7")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
