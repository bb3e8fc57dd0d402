"""The quality of a reward as tables and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.ends import show_ends
from experiments.pair_scores import Judged
from rlhf_jax.terminal import print_table

BLUE, ORANGE = "#0072B2", "#D55E00"
LENGTHS = {
    "score_pearson": "score and length, Pearson",
    "score_spearman": "score and length, Spearman",
    "difference_pearson": "their differences over pairs, Pearson",
    "difference_spearman": "their differences over pairs, Spearman",
}
FRESH = {
    "pairwise": "pairs of a prompt's samples in gold's order (share)",
    "spearman": "Spearman over all samples",
    "spearman_within": "Spearman within a prompt",
}

Found = dict[str, Any]


def show(found: Found) -> None:
    """All tables."""
    accuracy = {"value": found["accuracy"]} | {k: found[k] for k in ("low95", "high95")}
    rows = [
        ["accuracy (95 %)", show_ends(accuracy)],
        ["calibration error (ECE)", _number(found["ece"])],
        ["… of a calibrated model, by chance", _number(found["ece_by_chance"])],
        ["Brier score (a coin: 0.25)", _number(found["brier"])],
    ]
    print_table(f"On {found['pairs']:,} held-out pairs", ["", "found"], rows)
    for name, title in (("margins", "|r₁ − r₂|"), ("gold_margins", "gold's margin")):
        if name in found:
            show_margins(found[name], title)
    rows = [[text, show_ends(found["length"][name])] for name, text in LENGTHS.items()]
    print_table("Correlation with length (words)", ["", "found (95 %)"], rows)
    show_edits(found["edits"])
    if "fresh" in found:
        fresh = found["fresh"]
        rows = [[text, show_ends(fresh[name])] for name, text in FRESH.items()]
        title = f"Agreement with gold on fresh samples, {fresh['prompts']} prompts"
        print_table(title, ["", "found (95 %)"], rows)


def show_margins(rows: list[Found], title: str) -> None:
    """Accuracy by margin."""
    cells = [
        [
            f"{row['low']:.3g} … {row['high']:.3g}",
            show_ends(row | {"value": row["accuracy"]}),
            row["count"],
        ]
        for row in rows
    ]
    print_table("Accuracy by margin", [title, "accuracy (95 %)", "pairs"], cells)


def show_edits(edits: dict[str, Found]) -> None:
    """What edits do that must not matter."""
    rows = [
        [
            name,
            _number(row["shift"], "+.3f"),
            _number(row["change"]),
            show_ends(row["flips"]),
            row["texts"],
            row["pairs_too_long"],
        ]
        for name, row in edits.items()
    ]
    columns = ["edit", "shift", "|change|", "orders that flip", "texts", "too long"]
    title = "Edits that must not matter, in standard deviations of the scores"
    print_table(title, columns, rows)


def _number(x: float | None, form: str = ".3f") -> str:
    return "not known" if x is None else format(x, form)


def draw(found: Found, judged: Judged, path: Path) -> None:
    """Reliability, accuracy by margin, length, edits."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    draw_reliability(first, found)
    draw_margins(second, found)
    draw_lengths(third, found, judged)
    draw_edits(fourth, found["edits"])
    for axes in (first, second, third, fourth):
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def draw_reliability(axes: Axes, found: Found) -> None:
    """What it says against what happens; the size of a point is the number of pairs."""
    bins = [b for b in found["bins"] if b["count"]]
    axes.plot([0.5, 1], [0.5, 1], "--", color="0.6", linewidth=1, label="calibrated")
    x, y = ([b[name] for b in bins] for name in ("predicted", "observed"))
    axes.plot(x, y, color=BLUE, linewidth=1)
    sizes = np.array([b["count"] for b in bins])
    axes.scatter(x, y, s=12 + 120 * sizes / max(sizes, default=1), color=BLUE)
    axes.set_xlabel("σ(|r₁ − r₂|): what the model says")
    axes.set_ylabel("share preferred: what people say")
    title = f"Calibration: ECE {found['ece']:.3f}, Brier {found['brier']:.3f}"
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")


def draw_margins(axes: Axes, found: Found) -> None:
    """Accuracy by the model's margin and by gold's, bins of equal size."""
    drawn = (("margins", "by |r₁ − r₂|", BLUE), ("gold_margins", "by gold", ORANGE))
    for i, (name, label, colour) in enumerate(drawn):
        rows = found.get(name, [])
        if not rows:
            continue
        x = np.arange(len(rows)) + 1 + 0.08 * (2 * i - 1)
        low, high = ([r[name] for r in rows] for name in ("low95", "high95"))
        axes.vlines(x, low, high, color=colour)
        axes.plot(x, [r["accuracy"] for r in rows], "o-", color=colour, label=label)
    axes.axhline(0.5, color="0.6", linewidth=1, linestyle="--")
    axes.set_xticks(range(1, len(found["margins"]) + 1))
    axes.set_xlabel("bins of equal size, from close pairs to those far apart")
    axes.set_ylabel("accuracy, 95 % intervals")
    axes.set_title("Accuracy by margin", fontsize=11, loc="left")
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")


def draw_lengths(axes: Axes, found: Found, judged: Judged) -> None:
    """Every response, a little apart from others of the same length."""
    x, y = judged.lengths.ravel(), judged.scores.ravel()
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, size=len(x))
    axes.plot(x + jitter, y, ".", color=BLUE, markersize=2, alpha=0.4)
    rho = found["length"]["score_spearman"]
    axes.set_xlabel("length (words)")
    axes.set_ylabel("score")
    title = f"Length: Spearman {show_ends(rho, 2)}"
    axes.set_title(title, fontsize=11, loc="left")


def draw_edits(axes: Axes, edits: dict[str, Found]) -> None:
    """Share of the orders that flip."""
    names = list(edits)
    y = -np.arange(len(names))
    for at, name in zip(y, names, strict=True):
        flips = edits[name]["flips"]
        if flips["value"] is not None:
            axes.barh(at, flips["value"], color=BLUE, height=0.6)
            axes.plot([flips["low95"], flips["high95"]], [at, at], color="black")
        else:
            axes.text(
                0, float(at), "  no pair that it changes fits", va="center", color="0.4"
            )
    axes.set_yticks(y, names)
    axes.set_xlim(0, None)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("pairs whose order changes with the edit of one side")
    axes.set_title("Edits that must not matter", fontsize=11, loc="left")
