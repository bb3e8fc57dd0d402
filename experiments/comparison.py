"""What came of `experiments.compare`: its results as a table and as a picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.compared import ROWS
from rlhf_jax.rundir import load_json
from rlhf_jax.terminal import print_table

COLUMNS = (
    "algorithm",
    "gold score",
    "gain",
    "KL",
    "distinct",
    "ended",
    "samples",
    "seconds",
    "seeds",
)
TITLES = {
    "scores": "Policy gradients of scores",
    "own pairs": "Pairs of its own completions",
    "pairs": "Given pairs",
    "pairs, no reference": "Given pairs, no reference",
    "labels": "Given labels, good or bad",
    "imitation": "Best of n, imitation, a teacher",
}
GAP = 0.055  # between labels, as a share of a panel's height
TICKS = (0, 1, 3, 10, 30, 100)

Result = dict[str, Any]  # of an algorithm and seed


class Point(NamedTuple):
    """An algorithm's numbers, over those seeds that have them."""

    name: str
    seeds: int
    gold: float
    deviation: float  # of the gold score, over seeds; 0 of one
    gain: float
    kl: float
    distinct: float | None  # share of the completions
    ended: float | None  # likewise, by their end token
    samples: float
    seconds: float


def read_results(
    run_dir: Path, seeds: Sequence[int], names: Sequence[str]
) -> list[Result]:
    """Of all algorithms, and of the seeds that they were run with."""
    paths = [
        run_dir / f"seed{seed}" / f"{name}.json" for name in names for seed in seeds
    ]
    return [load_json(path) for path in paths if path.exists()]


def points(results: Sequence[Result]) -> list[Point]:
    """Means over seeds, in the order of the results."""
    found = [r for r in results if "error" not in r]
    began = {r["seed"]: r["gold"] for r in found if r["algorithm"] == "start"}
    names = dict.fromkeys(r["algorithm"] for r in found)
    return [
        _point(name, [r for r in found if r["algorithm"] == name], began)
        for name in names
    ]


def _point(name: str, own: Sequence[Result], began: dict[int, float]) -> Point:
    mean = lambda key: statistics.mean(r[key] for r in own)
    golds = [r["gold"] for r in own]
    return Point(
        name,
        seeds=len(own),
        gold=mean("gold"),
        deviation=statistics.stdev(golds) if len(own) > 1 else 0.0,
        gain=statistics.mean(r["gold"] - began[r["seed"]] for r in own),
        kl=mean("kl"),
        distinct=mean("distinct") if "distinct" in own[0] else None,
        ended=mean("ended") if "ended" in own[0] else None,
        samples=mean("samples"),
        seconds=mean("seconds"),
    )


def show(results: Sequence[Result], path: Path) -> None:
    """The table, on the terminal and as Markdown; and what fell short."""
    found = points(results)
    failed = [r for r in results if "error" in r]
    rows = [_cells(point) for point in found]
    rows += [
        [r["algorithm"], r["error"], *["–"] * (len(COLUMNS) - 3), f"seed {r['seed']}"]
        for r in failed
    ]
    print_table("Algorithms on TinyReviews", COLUMNS, rows)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    trained = [p for p in found if p.name != "start"]
    for point in [p for p in trained if p.gain < ROWS[p.name].least]:
        print(f"{point.name}: gained less than {ROWS[point.name].least}")


def _cells(point: Point) -> list[str]:
    spread = f" ± {point.deviation:.2f}" if point.seeds > 1 else ""
    return [
        point.name,
        f"{point.gold:.2f}{spread}",
        f"{point.gain:+.2f}" if point.name != "start" else "",
        f"{point.kl:.1f}",
        *("–" if x is None else f"{x:.2f}" for x in (point.distinct, point.ended)),
        f"{point.samples:,.0f}",
        f"{point.seconds:.0f}",
        str(point.seeds),
    ]


def draw(results: Sequence[Result], path: Path) -> None:
    """Gold score against KL: a panel and a colour a family, the others in grey."""
    found = points(results)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(15, 9), layout=layout)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    golds = [p.gold for p in found]
    for number, (family, axes) in enumerate(zip(TITLES, panels, strict=True)):
        axes.set_title(TITLES[family], fontsize=11, loc="left", fontweight="bold")
        axes.set_ylim(min(golds) - 0.06, max(golds) + 0.06)
        axes.set_xscale("symlog", linthresh=1)  # the start is at 0
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.set_xlim(-0.1, 1.4 * max(1.0, *(p.kl for p in found)))
        own = [p for p in found if p.name in ROWS and ROWS[p.name].family == family]
        _draw(axes, own, [p for p in found if p not in own], f"C{number}")
    figure.supxlabel("KL from the SFT policy (nats an episode)", fontsize=10)
    figure.supylabel("gold score of samples on held-out prompts", fontsize=10)
    figure.savefig(path, dpi=100)


def _draw(
    axes: Axes, own: Sequence[Point], others: Sequence[Point], colour: str
) -> None:
    """The family's points, their names beside the panel in the order of the scores."""
    for shown, of in ((others, "0.85"), (own, colour)):
        axes.plot([p.kl for p in shown], [p.gold for p in shown], "o", color=of)
    for point in [p for p in others if p.name == "start"]:
        at = (point.kl, point.gold)
        axes.plot(*at, "o", color="black")
        axes.annotate("start", at, (7, 3), textcoords="offset points", fontsize=8.5)
    own = sorted(own, key=lambda p: p.gold)
    low, high = axes.get_ylim()
    heights = apart([(p.gold - low) / (high - low) for p in own], gap=GAP)
    for point, height in zip(own, heights, strict=True):
        axes.annotate(
            point.name,
            (point.kl, point.gold),
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.4,
                "relpos": (0, 0.5),  # to where the name begins
                "shrinkA": 0,
            },
        )
    axes.tick_params(labelsize=8.5, color="0.7")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def apart(heights: Sequence[float], *, gap: float) -> list[float]:
    """Rising numbers, moved as little as may be: ``gap`` apart and below 0.98.

    >>> [round(x, 2) for x in apart([0.1, 0.5, 0.52, 1.0], gap=0.1)]
    [0.1, 0.5, 0.6, 0.98]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    most = 0.98
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], most)
        most = placed[i] - gap
    return placed
