"""Accuracy against labels: chosen by disagreement, and at random."""

import statistics
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.crowd_report import tidy
from rlhf_jax.terminal import print_table

Choice = Literal["random", "active"]
CHOICES: tuple[Choice, ...] = ("random", "active")

Result = dict[str, Any]


def needed(labels: list[int], accuracy: list[float], wanted: float) -> float:
    """Labels at which a curve first reaches an accuracy, between its points linearly.

    >>> round(needed([40, 80, 120], [0.6, 0.8, 0.9], 0.85))
    100
    """
    for i, reached in enumerate(accuracy):
        if reached >= wanted:
            if i == 0:
                return float(labels[0])
            step = (wanted - accuracy[i - 1]) / (reached - accuracy[i - 1])
            return labels[i - 1] + step * (labels[i] - labels[i - 1])
    return float("inf")


def curve(results: list[Result], choice: Choice) -> tuple[list[int], np.ndarray]:
    """(labels, accuracy [seeds, rounds]) of a choice."""
    own = [r for r in results if r["choice"] == choice]
    return own[0]["labels"], np.array([r["accuracy"] for r in own])


def show(results: list[Result], path: Path) -> float:
    """The table; returns the share of the labels that active choice needs."""
    labels, at_random = curve(results, "random")
    _, active = curve(results, "active")
    rows = [
        [f"{count}", *(_shown(both[:, i].tolist()) for both in (at_random, active))]
        for i, count in enumerate(labels)
    ]
    columns = ["labels", "at random", "by disagreement"]
    print_table("Accuracy on held-out pairs, mean of seeds", columns, rows)
    wanted = float(at_random.mean(axis=0)[-1])
    share = needed(labels, active.mean(axis=0).tolist(), wanted) / labels[-1]
    each = [
        needed(labels, own.tolist(), float(other[-1])) / labels[-1]
        for own, other in zip(active, at_random, strict=True)
    ]
    print(
        f"By disagreement {share:.0%} of the labels are enough for what "
        f"{labels[-1]} at random give ({wanted:.3f}); each seed: "
        + ", ".join(f"{x:.0%}" for x in each)
    )
    lines = [columns, ["---"] * 3, *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return share


def _shown(accuracy: list[float]) -> str:
    spread = f" ± {statistics.stdev(accuracy):.3f}" if len(accuracy) > 1 else ""
    return f"{statistics.mean(accuracy):.3f}{spread}"


def draw(results: list[Result], share: float, path: Path) -> None:
    """Both curves: each seed pale, their mean bold."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(7.5, 4.6), layout=layout)
    axes = figure.subplots()
    names = {"random": "at random", "active": "by disagreement"}
    for colour, choice in zip(("0.45", "C0"), CHOICES, strict=True):
        labels, accuracy = curve(results, choice)
        for own in accuracy:
            axes.plot(labels, own, color=colour, linewidth=0.8, alpha=0.4)
        mean = accuracy.mean(axis=0)
        axes.plot(labels, mean, "o-", color=colour, markersize=4, label=names[choice])
    labels, accuracy = curve(results, "random")
    axes.axhline(accuracy.mean(axis=0)[-1], color="0.45", linewidth=1, linestyle="--")
    if np.isfinite(share):
        axes.axvline(share * labels[-1], color="C0", linewidth=1, linestyle="--")
    axes.set_xlabel("labelled pairs")
    axes.set_ylabel("accuracy on held-out pairs, by the truth")
    axes.set_title("Which pairs people are asked about", loc="left")
    axes.legend(frameon=False)
    tidy(axes)
    figure.savefig(path, dpi=100)
