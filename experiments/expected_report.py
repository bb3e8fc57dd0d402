"""Expected reward as tables and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.asking import Asked
from experiments.best_of_k import LABELS
from rlhf_jax.evaluation import (
    expected_reward,
    mean_interval,
    predicted_standard_error,
)
from rlhf_jax.terminal import print_table

SHOWN = 5  # queries at either end, and rollouts
BLUE, ORANGE = "#0072B2", "#D55E00"


def show(
    found: Asked, rewards: dict[str, np.ndarray], summary: dict[str, dict[str, Any]]
) -> None:
    """The estimate, the queries at both ends, and some rollouts."""
    n, k = rewards["score"].shape
    print_table(
        f"Expected reward, {n} queries × {k} responses",
        ["", "expected", "95 %, queries a sample", "95 %, these queries only"],
        [
            [
                LABELS[name],
                s["value"],
                _ends(s["low95"], s["high95"]),
                _ends(s["queries_fixed"]["low95"], s["queries_fixed"]["high95"]),
            ]
            for name, s in summary.items()
        ],
    )
    if k > 1 and n > 1:
        show_sources(rewards)
    score = summary["score"]
    if "exact" in score:
        print(
            f"exact over the listed responses: {score['exact']:.4g} from "
            f"{100 * score['exact_mass']:.2f} % of the policy's mass\n"
        )
    if "pass_at_k" in score:
        rows = [
            [int(x), p["value"], _ends(p["low95"], p["high95"])]
            for x, p in score["pass_at_k"].items()
        ]
        print_table("pass@k", ["k", "pass@k", "95 % interval"], rows)
    show_queries(found.prompts, rewards["score"])
    show_rollouts(found, k)


def show_sources(rewards: dict[str, np.ndarray]) -> None:
    """Where the uncertainty is from, and what would help."""
    rows = []
    for name, x in rewards.items():
        estimate, (n, k) = expected_reward(x), x.shape
        error = lambda n, k, of=estimate: predicted_standard_error(
            of, queries=n, responses=k
        )
        rows.append(
            [
                LABELS[name],
                estimate.between,
                estimate.within,
                estimate.standard_error,
                error(2 * n, k),
                error(n, 2 * k),
            ]
        )
    columns = ["", "variance between queries", "within", "standard error"]
    columns += ["with twice the queries", "with twice the responses"]
    print_table("Where the uncertainty is from", columns, rows)


def show_queries(prompts: Sequence[str], rewards: np.ndarray) -> None:
    """The queries of least and of most reward."""
    order = np.argsort(rewards.mean(axis=1)).tolist()
    ends = order if len(order) <= 2 * SHOWN else order[:SHOWN] + order[-SHOWN:]
    rows = []
    for i in ends:
        interval = mean_interval(rewards[i])
        rows.append([prompts[i], interval.value, _ends(interval.low, interval.high)])
    columns = ["query", "expected reward", "95 % interval"]
    print_table("Queries of least and of most reward", columns, rows)


def show_rollouts(found: Asked, k: int) -> None:
    """The first response to some queries."""
    rows = [
        [
            found.prompts[i],
            found.completions[i * k],
            f"{math.exp(found.logprobs[i * k]):.2g}",
            float(found.scores["score"][i * k]),
        ]
        for i in range(min(SHOWN, len(found.prompts)))
    ]
    columns = ["query", "response", "probability", "reward"]
    print_table("Rollouts", columns, rows)


def _ends(low: float | None, high: float | None) -> str:
    if low is None or high is None or math.isnan(low):
        return "not known"
    return f"{low:.4g} … {high:.4g}"


def draw(rewards: np.ndarray, path: Path, label: str) -> None:
    """Every query with its interval; what more queries or responses would help."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_queries(left, rewards, label)
    n, k = rewards.shape
    if k > 1 and n > 1:
        draw_errors(right, rewards, label)
    else:
        right.set_axis_off()
        right.text(
            0.5, 0.5, "one response a query:\nits variance is not known", ha="center"
        )
    for axes in (left, right):
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def draw_queries(axes: Axes, rewards: np.ndarray, label: str) -> None:
    """Query means in order, each with its interval over responses."""
    estimate = expected_reward(rewards)
    order = np.argsort(estimate.query_means)
    x = np.arange(len(order)) + 1
    each = np.array([mean_interval(rewards[i]) for i in order])
    axes.vlines(
        x, each[:, 1], each[:, 2], color="0.8", linewidth=1, label="95 % of a query"
    )
    axes.plot(x, each[:, 0], ".", color=BLUE, markersize=4, label="mean of a query")
    mean, low, high = estimate.sampled
    axes.axhline(mean, color=ORANGE, linewidth=1.2, label="expected reward")
    if math.isfinite(low):
        axes.axhspan(low, high, color=ORANGE, alpha=0.25, linewidth=0)
    spread = np.ptp(rewards) or 1.0
    axes.set_ylim(rewards.min() - 0.15 * spread, rewards.max() + 0.15 * spread)
    axes.set_xlabel("queries, in the order of their mean")
    axes.set_ylabel(label)
    axes.set_title("Expected reward of each query", fontsize=11, loc="left")
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")


def draw_errors(axes: Axes, rewards: np.ndarray, label: str) -> None:
    """Standard error against responses in all, for several responses a query."""
    estimate, (n, k) = expected_reward(rewards), rewards.shape
    total = np.geomspace(max(16, n // 4), 64 * n, 30)
    for i, responses in enumerate((1, 4, 16, 64)):
        error = [
            predicted_standard_error(
                estimate, queries=t / responses, responses=responses
            )
            for t in total
        ]
        shade = str(0.75 - 0.2 * i)
        axes.plot(
            total, error, color=shade, linewidth=1.3, label=f"{responses} a query"
        )
    at = n * k, estimate.standard_error
    axes.plot(*at, "o", color=ORANGE, label=f"this run: {n} × {k}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.set_xlabel("responses in all")
    axes.set_ylabel(f"standard error ({label})")
    axes.set_title(
        "What more queries or more responses would help", fontsize=11, loc="left"
    )
    axes.legend(fontsize=8.5, frameon=False)
