"""A crowd, a fifth of it careless: what its consensus is worth to a reward model.

  python -m experiments.crowd
  python -m experiments.crowd --seeds 0 --items 100 --updates 60

Twenty simulated people rank reviews of TinyReviews, five people an item. Four are
careless: two click at random, two rank in the order that is shown. A reward model is
trained on all votes as they are, on the consensus of all votes, and on the votes of the
careful people alone, whom only a simulation can tell from the others beforehand. All
are measured on held-out pairs that the truth orders.

The table is printed and written to table.md, the picture to crowd.png; docs/feedback.md
has the numbers. A result that is there is not made again. 2 CPU cores: about a minute
for each of the nine models.
"""

import dataclasses
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from experiments import cli, reward_model
from experiments.compare import keep, keep_compiled
from experiments.inputs import DataConfig
from experiments.judgements import pairs
from experiments.sft import SMALL
from experiments.simulation import gold_pairs, judge, make_crowd
from rlhf_jax.data import load_tiny_reviews, read_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.report import (
    Report,
    as_votes,
    consensus_rows,
    crowd_report,
    write_rows,
)
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir, load_json
from rlhf_jax.terminal import print_table

ARMS = {
    "all": "all votes as they are",
    "consensus": "consensus of all votes",
    "careful": "votes of the careful alone",
}

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """A simulated crowd."""

    run_dir: Path = Path("runs/crowd")
    """Where judgements, models, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the crowd's votes and of the training."""
    items: int = 200
    """Prompts with four completions each, to be ranked."""
    votes: int = 5
    """People who rank an item."""
    careful: int = 16
    """People who read what they rank."""
    careless: int = 4
    """People who do not."""
    updates: int = 200
    """Of each reward model, about: its epochs are whole."""
    batch_size: int = 64
    """Pairs an update."""
    optim: OptimConfig = OptimConfig(
        learning_rate=2e-3, schedule="cosine", warmup=20, weight_decay=0.3
    )
    """Optimiser and schedule."""
    model: TransformerConfig = dataclasses.replace(
        SMALL, d_model=64, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=128
    )
    """Each reward model."""
    eval_items: int = 500
    """Held-out prompts whose pairs the truth orders."""

    def __post_init__(self):
        if not 1 <= self.votes <= self.careful:
            raise UserError(
                f"votes = {self.votes}: expected 1 to {self.careful}, the careful ones"
            )


def main(config: Config) -> list[Result]:
    """Trains what has no result yet, and shows all."""
    run_dir = create_run_dir(config.run_dir, config, resume=True)
    keep_compiled(run_dir / "compiled")
    tests = load_tiny_reviews("rankings", "test", data_dir=run_dir / "data")
    write_rows(run_dir / "gold.jsonl", gold_pairs(tests[: config.eval_items]))
    results, reports = [], []
    for seed in config.seeds:
        folder = run_dir / f"seed{seed}"
        folder.mkdir(exist_ok=True)
        reports.append(write_judgements(config, folder, seed))
        for arm in ARMS:
            keep(folder / f"{arm}.json", train, config, folder, arm, seed)
            results.append(load_json(folder / f"{arm}.json"))
    show(results, run_dir / "table.md")
    draw(config, reports[0], results, run_dir / "crowd.png")
    print(f"table: {run_dir / 'table.md'}  picture: {run_dir / 'crowd.png'}")
    return results


def write_judgements(config: Config, folder: Path, seed: int) -> Report:
    """Writes all votes, those of the careful, and the consensus of all."""
    data_dir, rng = folder.parent / "data", random.Random(f"crowd/{seed}")
    rows = load_tiny_reviews("rankings", "train", data_dir=data_dir)
    crowd = make_crowd(config.careful, config.careless)
    asked = rng.sample(rows, config.items)
    judged = judge(asked, crowd, votes=config.votes, rng=rng)
    careful = [row for row in judged if not crowd[row["annotator"]].careless]
    write_rows(folder / "careful.jsonl", careful)
    write_rows(folder / "all.jsonl", judged)
    votes = as_votes(read_rows(folder / "all.jsonl"))
    found = crowd_report(votes, rng=np.random.default_rng(seed))
    agreed = consensus_rows(found.judged, found.model)
    write_rows(folder / "consensus.jsonl", agreed)
    named = {
        who
        for who, known in zip(found.judged.annotators, found.reliability, strict=True)
        if known.careless
    }
    true = {who for who, person in enumerate(crowd) if person.careless}
    print(
        f"seed {seed}: {len(named & true)} of {len(true)} careless people named, and "
        f"{len(named - true)} careful ones"
    )
    return found


def train(config: Config, folder: Path, arm: str, seed: int) -> Result:
    """A reward model of one kind of judgements."""
    path = folder / f"{arm}.jsonl"
    count = len(pairs(read_rows(path)))
    summary = reward_model.main(
        reward_model.Config(
            folder / arm,
            DataConfig(str(path), str(folder.parent / "gold.jsonl")),
            kind="pairwise",
            model=config.model,
            optim=config.optim,
            batch_size=config.batch_size,
            epochs=max(1, round(config.updates * config.batch_size / count)),
            eval_every=10_000,
            save_every=10_000,
            seed=seed,
            resume=True,
        )
    )
    accuracy = summary["reward/eval_accuracy"]
    return {"arm": arm, "seed": seed, "pairs": count, "accuracy": accuracy}


def show(results: list[Result], path: Path) -> None:
    """Means over seeds, on the terminal and as Markdown."""
    rows = []
    for arm, name in ARMS.items():
        own = [r for r in results if r["arm"] == arm]
        found = [r["accuracy"] for r in own]
        spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        count = f"{statistics.mean(r['pairs'] for r in own):,.0f}"
        each = "  ".join(f"{accuracy:.3f}" for accuracy in found)
        rows.append([name, count, f"{statistics.mean(found):.3f}{spread}", each])
    columns = ["trained on", "pairs", "gold accuracy", "each seed"]
    print_table("Reward models of a crowd, a part of it careless", columns, rows)
    lines = [columns, ["---"] * len(columns), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def draw(config: Config, report: Report, results: list[Result], path: Path) -> None:
    """What the first seed's annotators can, and what all seeds' models can."""
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
    left.axvspan(config.careful - 0.5, len(found) - 0.5, color="0.94", zorder=0)
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


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
