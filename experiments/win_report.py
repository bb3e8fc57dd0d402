"""Win rates and ratings: what they are made of, as tables and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ends import ends, show_ends
from rlhf_jax.evaluation import (
    bradley_terry,
    elo_ratings,
    length_controlled_win_rate,
    reward_difference,
    win_rate,
)
from rlhf_jax.terminal import print_table

BLUE, ORANGE = "#0072B2", "#D55E00"

Row = dict[str, Any]


def compare(
    names: Sequence[str],
    outcomes: Mapping[tuple[int, int], np.ndarray],
    lengths: Sequence[np.ndarray],
    rewards: Sequence[np.ndarray] | None,
    rng: np.random.Generator,
) -> list[Row]:
    """Each policy against the first one.

    Args:
      names: of the policies.
      outcomes: [N, M] of each pair of them, by their numbers.
      lengths: [N, K] characters, of each policy's responses.
      rewards: [N, K] of each; None where a judge compares.
      rng: of the bootstrap of the differences.
    """
    rows = []
    for i in range(1, len(names)):
        own = outcomes[i, 0]
        found = win_rate(own)
        at_equal_length = length_controlled_win_rate(own, longer(lengths, i, own))
        row: Row = {
            "policy": names[i],
            "win_rate": ends(found.rate),
            "wins": found.wins,
            "ties": found.ties,
            "losses": found.losses,
            "length_controlled": ends(at_equal_length.rate),
            "length_coef": at_equal_length.length_coef,
            "comparisons": found.comparisons,
        }
        if rewards is not None:
            lead = reward_difference(rewards[i], rewards[0], rng=rng)
            row["reward_difference"] = ends(lead)
        rows.append(row)
    return rows


def longer(lengths: Sequence[np.ndarray], i: int, outcomes: np.ndarray) -> np.ndarray:
    """[N, M]: by how much responses of policy i are longer than those of the first.

    All pairs of a prompt's responses where there are as many outcomes, else one each.
    """
    own, other = lengths[i], lengths[0]
    if outcomes.shape == own.shape:
        return own - other
    return (own[:, :, None] - other[:, None, :]).reshape(outcomes.shape)


def rate(
    names: Sequence[str], outcomes: Mapping[tuple[int, int], np.ndarray]
) -> list[Row]:
    """All policies on Elo's scale, the best first."""
    n, m = len(outcomes[0, 1]), len(names)
    points = np.zeros((n, m, m))
    for (a, b), own in outcomes.items():
        points[:, a, b] = own.sum(axis=1)
    ratings = elo_ratings(bradley_terry(points))
    rows = [
        {"policy": name, "elo": ends(rating)}
        for name, rating in zip(names, ratings, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["elo"]["value"])


def show(summary: Row) -> None:
    """The tables."""
    for found in summary["comparisons"]:
        show_comparison(found, summary["policies"][0])


def show_comparison(found: Row, first: str) -> None:
    """Of one judge."""
    rows = [
        [
            row["policy"],
            show_ends(row["win_rate"]),
            f"{row['wins']:.3f} / {row['ties']:.3f} / {row['losses']:.3f}",
            show_ends(row["length_controlled"]),
        ]
        for row in found["against_first"]
    ]
    columns = ["policy", "win rate (95 %)", "won / tie / lost", "at equal length"]
    print_table(f"Against {first}, by {found['judged_by']}", columns, rows)
    leads = {r["policy"]: r.get("reward_difference") for r in found["against_first"]}
    rows = []
    for row in found["ratings"]:
        lead = leads.get(row["policy"])
        shown = "–" if lead is None else show_ends(lead)
        rows.append([row["policy"], show_ends(row["elo"], 0), shown])
    columns = ["policy", "Elo (95 %)", f"reward above that of {first}"]
    print_table("Ratings, their mean is 1000", columns, rows)
    if "position_bias" in found:
        print(
            f"The judge names the first more than half by {found['position_bias']:+.3f}"
            f", and in both orders the same one in {found['swap_consistency']:.0%} of "
            "the comparisons (guessing: 50 %)"
        )


def draw(summary: Row, path: Path) -> None:
    """A row a judge: win rates, as they are and at equal length, and ratings."""
    found, policies = summary["comparisons"], summary["policies"]
    height = len(found) * (1.4 + 0.4 * len(policies))
    figure = Figure(figsize=(11, height), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), own in zip(panels, found, strict=True):
        draw_comparison(left, right, own, policies[0])
    figure.savefig(path, dpi=100)


def draw_comparison(left: Axes, right: Axes, found: Row, first: str) -> None:
    """Of one judge."""
    rows, ratings = found["against_first"], found["ratings"]
    names = [row["policy"] for row in rows]
    draw_ends(left, names, [row["win_rate"] for row in rows], BLUE, 0.12, "win rate")
    controlled = [row["length_controlled"] for row in rows]
    draw_ends(left, names, controlled, ORANGE, -0.12, "at equal length")
    left.axvline(0.5, color="0.5", linewidth=0.8, linestyle="--")
    left.set_xlim(-0.02, 1.02)
    left.set_xlabel(f"share won against {first}, 95 % intervals")
    left.set_title(f"By {found['judged_by']}", fontsize=10, loc="left")
    left.legend(fontsize=8.5, frameon=False)
    names = [row["policy"] for row in ratings]
    draw_ends(right, names, [row["elo"] for row in ratings], BLUE, 0, None)
    right.set_xlabel("Elo rating (mean 1000), 95 % intervals")
    for axes in (left, right):
        axes.grid(color="0.92", linewidth=0.8, axis="x")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def draw_ends(
    axes: Axes,
    names: Sequence[str],
    numbers: Sequence[Row],
    colour: str,
    above: float,
    label: str | None,
) -> None:
    """A point and its interval for each name, the first one on top."""
    y = -np.arange(len(names)) + above
    values = [n["value"] for n in numbers]
    known = [(n["low95"], n["high95"], at) for n, at in zip(numbers, y, strict=True)]
    for low, high, at in known:
        if low is not None:
            axes.plot([low, high], [at, at], color=colour, linewidth=1.5)
    axes.plot(values, y, "o", color=colour, label=label)
    axes.set_yticks(-np.arange(len(names)), names)
    axes.set_ylim(-len(names) + 0.4, 0.6)
