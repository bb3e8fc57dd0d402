"""Runs with a planted hack and without: a table, and a picture of gold and alarms."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rlhf_jax.terminal import print_table

Result = dict[str, Any]


def show(results: list[Result], run_dir: Path) -> None:
    """The table, printed and written to table.md."""
    head = ["run", "alarm after", "which", "gold there", "gold's peak", "10 % below it"]
    head.append("gold at the end")
    rows = []
    for r in results:
        gold, alarm = r["gold"], r["alarm"]
        rung = ["none", "", ""]
        if alarm is not None:
            at = f"{gold[alarm.step - 1]:.2f}"
            rung = [alarm.step, ", ".join(alarm.kinds), at]
        peak = f"{gold[r['peak'] - 1]:.2f} after {r['peak']}"
        fallen = "never" if r["fallen"] is None else f"after {r['fallen']}"
        name = f"{r['kind']}, seed {r['seed']}"
        rows.append([name, *rung, peak, fallen, f"{gold[-1]:.2f}"])
    print_table("Alarms, in iterations", head, rows)
    lines = [head, ["---"] * len(head), *rows]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    (run_dir / "table.md").write_text(text, encoding="utf-8")


def draw(results: list[Result], path: Path) -> None:
    """Gold and score of every run, and where its first alarm is."""
    seeds = sorted({r["seed"] for r in results})
    layout = ConstrainedLayoutEngine()
    figure = Figure(figsize=(3.2 * len(seeds), 5.4), layout=layout)
    grid = figure.subplots(2, len(seeds), sharex=True, sharey=True, squeeze=False)
    for r in results:
        axes = grid[int(r["kind"] == "clean"), seeds.index(r["seed"])]
        steps = np.arange(1, len(r["gold"]) + 1)
        scale = np.max(np.abs(r["score"]))
        axes.plot(steps, r["score"] / scale, color="0.65", label="score, 1 at its most")
        axes.plot(steps, r["gold"], color="#0072B2", label="gold sentiment")
        if r["fallen"] is not None:
            lost = {"color": "#E69F00", "linestyle": ":", "linewidth": 2}
            axes.axvline(r["fallen"], label="gold 10 % below its peak", **lost)
        if r["alarm"] is not None:
            axes.axvline(r["alarm"].step, color="#D55E00", label="first alarm")
            above = {"transform": axes.get_xaxis_transform(), "ha": "center"}
            which = ", ".join(r["alarm"].kinds)
            axes.text(r["alarm"].step, 1.02, which, fontsize=8, **above)
        axes.set_title(f"{r['kind']}, seed {r['seed']}", fontsize=10, pad=14)
    for axes in grid[-1]:
        axes.set_xlabel("iteration", fontsize=9)
    handles = {x.get_label(): x for axes in grid[0] for x in axes.get_lines()}
    figure.legend(handles=[*handles.values()], loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)
