"""How far answers follow principles, stage by stage: a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.crowd_report import tidy
from experiments.principled import Row
from rlhf_jax.feedback import preferred, swap_consistency
from rlhf_jax.rewards import (
    RewardFunction,
    call_reward_function,
    load_reward_function,
)
from rlhf_jax.rundir import save_json
from rlhf_jax.terminal import print_table


class Answers(NamedTuple):
    """What a stage's answers are like: means over them."""

    stage: str
    answers: int
    measures: dict[str, float]
    distinct: float


Measures = Mapping[str, RewardFunction]


def report(
    run_dir: Path,
    prompts: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    revised: Sequence[Row],
    judged: Sequence[Row],
    names: Sequence[str],
) -> list[Answers]:
    """Tables, a picture and a summary of everything.

    Args:
      run_dir: where they go.
      prompts: that each stage was asked.
      answers: of each stage, the first one's before any revision.
      revised: transcripts.
      judged: pairs and verdicts.
      names: of the measures, module:function.
    """
    measures = {n.rpartition(":")[2]: load_reward_function(n) for n in names}
    found = [measure(stage, prompts, said, measures) for stage, said in answers.items()]
    found[1:1] = revision_answers(revised, measures)
    show(found, judge_rows(judged, measures), run_dir / "table.md")
    draw(found, run_dir / "constitutional.png")
    save_json(run_dir / "summary.json", [stage._asdict() for stage in found])
    print(f"table: {run_dir / 'table.md'}  picture: {run_dir / 'constitutional.png'}")
    return found


def measure(
    stage: str,
    prompts: Sequence[str],
    completions: Sequence[str],
    measures: Measures,
) -> Answers:
    """The mean of each measure, and the share of different answers."""
    means = {
        name: float(np.mean(call_reward_function(function, prompts, completions)))
        for name, function in measures.items()
    }
    distinct = len({*completions}) / len(completions)
    return Answers(stage, len(completions), means, distinct)


def revision_answers(rows: Sequence[Row], measures: Measures) -> list[Answers]:
    """What the assistant's answers are like after each revision."""
    prompts, steps = [r["prompt"] for r in rows], [r["revisions"] for r in rows]
    return [
        measure(
            f"revision {n + 1}", prompts, [s[n]["response"] for s in steps], measures
        )
        for n in range(len(steps[0]))
    ]


def judge_rows(judged: Sequence[Row], measures: Measures) -> list[list[str]]:
    """How the judge decides, principle by principle, where a measure differs."""
    prompts = [row["prompt"] for row in judged]
    principles = np.array([row["principle"] for row in judged])
    verdicts = [np.array(row["verdict"]) for row in judged]
    pairs = [row["completions"] for row in judged]
    lead = np.array([preferred(verdict)[0, 1] - 0.5 for verdict in verdicts])
    rows = []
    for name, function in measures.items():
        first, second = (
            call_reward_function(function, prompts, [pair[i] for pair in pairs])
            for i in range(2)
        )
        for principle in dict.fromkeys(principles.tolist()):
            chosen = np.flatnonzero((first != second) & (principles == principle))
            if not len(chosen):
                continue
            agreed = swap_consistency([verdicts[i] for i in chosen])
            higher = np.mean((lead * (first - second))[chosen] > 0)
            count = f"{len(chosen):,}"
            shares = f"{100 * agreed:.0f} %", f"{100 * higher:.0f} %"
            rows.append([principle, name, count, *shares])
    return rows


def show(found: Sequence[Answers], judge: Sequence[Sequence[str]], path: Path) -> None:
    """What was answered and how it was judged, on the terminal and as Markdown."""
    columns = ["answers of", "number", *found[0].measures, "distinct"]
    rows = [
        [
            stage.stage,
            f"{stage.answers:,}",
            *(f"{mean:.3f}" for mean in stage.measures.values()),
            f"{stage.distinct:.2f}",
        ]
        for stage in found
    ]
    asked = [
        "principle",
        "pairs that differ in",
        "number",
        "orders agree",
        "more of it",
    ]
    print_table("The judge, by what differs", asked, judge)
    print_table("Answers, stage by stage (means)", columns, rows)
    tables = [markdown(columns, rows), markdown(asked, judge)]
    path.write_text("\n".join(tables), encoding="utf-8")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(found: Sequence[Answers], path: Path) -> None:
    """A line a measure, over the stages."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for name in found[0].measures:
        means = [stage.measures[name] for stage in found]
        axes.plot(means, "o-", linewidth=1.6, markersize=5, label=name)
    axes.legend(frameon=False)
    axes.set_xticks(range(len(found)), [stage.stage for stage in found])
    axes.set_xlim(-0.3, len(found) - 0.3)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("Share of answers, stage by stage", loc="left")
    tidy(axes)
    figure.savefig(path, dpi=100)
