"""What was found of users whose tastes differ, as a table and a picture."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.crowd_report import tidy
from experiments.tastes import GROUPS
from rlhf_jax.terminal import print_table

Result = dict[str, Any]

SPLITS = ("all groups agree", "three against one", "two against two")


def show(results: list[Result], path: Path) -> None:
    """Means over seeds, on the terminal and as Markdown."""
    names = list(results[0]["accuracy"])
    rows = [
        [_title(name), *(_shown(results, name, kind) for kind in range(3))]
        for name in names
    ]
    columns = ["reward", *SPLITS]
    print_table("Accuracy on held-out pairs, by the users' tastes", columns, rows)
    lines = [columns, ["---"] * len(columns), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def _title(name: str) -> str:
    if name == "pooled":
        return "pooled model, new users"
    if name == "known":
        return "personal, users it was trained on"
    return f"personal, new users, {name} labels each"


def _shown(results: list[Result], name: str, kind: int) -> str:
    found = [r["accuracy"][name][kind] for r in results]
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread}"


def draw(results: list[Result], path: Path) -> None:
    """Accuracy against labels, and what tells the users of the first seed apart."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(11, 4.6), layout=layout)
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    counts = [name for name in results[0]["accuracy"] if name.isdecimal()]
    labels = [int(name) for name in counts]
    for kind, colour in zip((2, 1, 0), ("C0", "C1", "C2"), strict=True):
        mean = lambda name, kind=kind: statistics.mean(
            r["accuracy"][name][kind] for r in results
        )
        for result in results:
            own = [result["accuracy"][name][kind] for name in counts]
            left.plot(labels, own, color=colour, linewidth=0.8, alpha=0.4)
        found = [mean(name) for name in counts]
        left.plot(labels, found, "o-", color=colour, markersize=4, label=SPLITS[kind])
        left.axhline(mean("pooled"), color=colour, linewidth=1.2, linestyle="--")
    left.set_xlabel("labels of a new user")
    left.set_ylabel("accuracy on held-out pairs, by the user's taste")
    left.set_title("New users (dashed: one pooled model)", loc="left")
    left.legend(frameon=False, loc=(0.62, 0.13), title="pairs about which")
    draw_users(right, results[0])
    for axes in (left, right):
        tidy(axes)
    figure.savefig(path, dpi=100)


def draw_users(axes: Any, result: Result) -> None:
    """Users' weights along the two directions in which they differ most."""
    weights, groups = np.array(result["weights"]), np.array(result["groups"])
    centred = weights - weights.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    found = centred @ directions[:2].T
    if found.shape[1] < 2:  # one number a user
        found = np.pad(found, ((0, 0), (0, 1)))
    for group, name in enumerate(GROUPS):
        own = found[groups == group]
        axes.plot(*own.T, "o^sD"[group], markersize=5, alpha=0.7, label=name)
    axes.set_xlabel("weights along the first direction")
    axes.set_ylabel("along the second")
    axes.set_title("Users it was trained on, by what they like", loc="left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    axes.legend(frameon=False, loc="upper center", ncols=2)
