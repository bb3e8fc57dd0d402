"""What over-optimisation looks like: curves over √KL, their fits, a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.evaluation import OveroptimizationFit, fit_overoptimization
from rlhf_jax.evaluation.overoptimization import Method
from rlhf_jax.rundir import load_json, save_json
from rlhf_jax.terminal import print_table
from rlhf_jax.tracking import METRICS_FILE, read_metrics

TITLES: dict[Method, str] = {"rl": "PPO", "best_of_n": "best of n"}
COLOURS = ("#D55E00", "#E69F00", "#56B4E9", "#0072B2")
LAST = 0.25  # of a policy's iterations: their mean is its point


class Curve(NamedTuple):
    """What optimising one reward model did."""

    preferences: int  # that it learned from
    method: Method
    accuracy: float  # of the reward models, held out
    kl: np.ndarray  # [N] nats a response; 0 first
    proxy: np.ndarray  # [N] its own score, less that of the first policy
    gold: np.ndarray  # [N] the truth, less that of the first policy

    @property
    def fit(self) -> OveroptimizationFit:
        return fit_overoptimization(self.kl, self.gold, method=self.method)


def trained(coef: float) -> str:
    """The directory of the policy with a KL coefficient."""
    return f"ppo_{coef:g}"


def report(
    run_dir: Path,
    seeds: Sequence[int],
    preferences: Sequence[int],
    coefs: Sequence[float],
) -> dict[str, Any]:
    """The table, the picture, and the numbers of both."""
    cells = lambda count: [run_dir / f"seed{seed}" / str(count) for seed in seeds]
    curves = [curve for n in preferences for curve in read(cells(n), n, coefs)]
    found = {name(c): numbers(c) for c in curves}
    save_json(run_dir / "summary.json", found)
    print_table(
        "Gold reward gained by optimising a learned reward",
        [
            "method",
            "preferences",
            "accuracy",
            "d at the highest",
            "highest gold",
            "last d",
            "last gold",
            "α",
            "γ",
            "R²",
        ],
        [
            [TITLES[c.method], c.preferences, *found[name(c)].values()]
            for c in sorted(curves, key=lambda c: c.method)
        ],
    )
    draw(curves, run_dir / "overoptimization.png")
    return found


def name(curve: Curve) -> str:
    """The curve's key in summary.json."""
    return f"{curve.method}/{curve.preferences}"


def read(cells: Sequence[Path], count: int, coefs: Sequence[float]) -> list[Curve]:
    """Both curves of the reward models of so many preferences, means over seeds.

    They begin with the policy that best of one is: thousands of samples of it.
    """
    judged = [load_json(cell / "reward/summary.json") for cell in cells]
    accuracy = float(np.mean([found["reward/eval_accuracy"] for found in judged]))
    drawn = np.mean([best_of_n(cell) for cell in cells], axis=0)
    ks = np.unique(np.geomspace(1, drawn.shape[1], 40).round().astype(int)) - 1
    first = drawn[:, :1]
    ends = [np.mean([ppo(c / trained(coef)) for c in cells], axis=0) for coef in coefs]
    ends.sort(key=lambda end: end[0])
    rl = np.concatenate([first, np.stack(ends, axis=1)], axis=1)

    def curve(method: Method, points: np.ndarray) -> Curve:
        kl, proxy, gold = points - first
        # Next to 0 an estimate of the KL, a mean of log-ratios, may be below it.
        return Curve(count, method, accuracy, np.maximum(kl, 0.0), proxy, gold)

    return [curve("rl", rl), curve("best_of_n", drawn[:, ks])]


def best_of_n(cell: Path) -> np.ndarray:
    """[3, n]: KL, score and gold of the best of 1 … n."""
    found = load_json(cell / "best_of_n/curve.json")
    return np.array([found[name] for name in ("kl", "score", "gold")])


def ppo(run_dir: Path) -> np.ndarray:
    """[3]: KL, score and gold of a policy in its last iterations."""
    names = "objective/kl", "objective/score", "objective/gold"
    rows = read_metrics(run_dir / METRICS_FILE)
    rows = rows[-max(1, round(LAST * len(rows))) :]
    return np.array([[row[name] for name in names] for row in rows]).mean(axis=0)


def numbers(curve: Curve) -> dict[str, float]:
    """A line of the table."""
    fit, top = curve.fit, int(np.argmax(curve.gold))
    d = np.sqrt(curve.kl)
    return {
        "accuracy": curve.accuracy,
        "highest_d": float(d[top]),
        "highest_gold": float(curve.gold[top]),
        "last_d": float(d[-1]),
        "last_gold": float(curve.gold[-1]),
        "alpha": fit.alpha,
        "gamma": fit.gamma,
        "r_squared": fit.r_squared,
    }


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Points and fits of gold reward, and the score that was optimised, by method."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    for axes, method in zip(figure.subplots(1, 2), TITLES, strict=True):
        shown = [curve for curve in curves if curve.method == method]
        for colour, curve in zip(COLOURS, shown, strict=False):
            draw_curve(axes, curve, colour)
        axes.set_title(TITLES[method], loc="left", fontweight="bold")
        axes.set_xlabel("√KL from the first policy (√nats a response)")
        axes.set_ylabel("gold sentiment gained")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="preferences", fontsize=9, frameon=False)
    figure.suptitle(
        "points: gold;  lines: d (α − γ log d), d (α − γ d);  ×: highest of the line"
    )
    figure.savefig(path, dpi=100)


def draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    """One reward model's points and fit."""
    fit, d = curve.fit, np.sqrt(curve.kl)
    along = np.linspace(0, d.max(), 200)
    axes.plot(d, curve.gold, "o", color=colour, markersize=3.5, alpha=0.6)
    axes.plot(along, fit.gain(along), color=colour, label=f"{curve.preferences:,}")
    if fit.peak <= d.max():
        axes.plot(fit.peak, fit.gain(fit.peak), "x", color=colour, markersize=9)
