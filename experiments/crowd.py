"""A crowd, a fifth of it careless: what its consensus is worth to a reward model.

  python -m experiments.crowd
  python -m experiments.crowd --seeds 0 --items 100 --updates 60

Twenty simulated people rank reviews of TinyReviews, five people an item. Four are
careless: two click at random, two rank in the order that is shown. A reward model is
trained on all votes as they are, on the consensus of all votes, and on the votes of the
careful people alone, whom only a simulation can tell from the others beforehand. All
are measured on held-out pairs that the truth orders. All models have as many updates;
their epochs are whole, so it is the batch that gives way, by a few pairs.

The table is printed and written to table.md, the picture to crowd.png; docs/feedback.md
has the numbers. A result that is there is not made again. About 20 s of one CPU core
for each of the eighteen models.
"""

import dataclasses
import random
from pathlib import Path

import numpy as np

from experiments import cli, reward_model
from experiments.crowd_report import ARMS, Result, draw, show
from experiments.inputs import DataConfig
from experiments.judgements import pairs
from experiments.keeping import keep, keep_compiled
from experiments.sft import SMALL
from experiments.simulation import gold_pairs, judge, make_crowd
from rlhf_jax.data import load_tiny_reviews, read_rows, write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.report import (
    Report,
    as_votes,
    consensus_rows,
    crowd_report,
)
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir, load_json


@dataclasses.dataclass(frozen=True)
class Config:
    """A simulated crowd."""

    run_dir: Path = Path("runs/crowd")
    """Where judgements, models, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
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
    """Of each reward model."""
    batch_size: int = 64
    """Pairs an update, about: epochs are whole."""
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
    write_rows(gold_pairs(tests[: config.eval_items]), run_dir / "gold.jsonl")
    results, reports = [], []
    for seed in config.seeds:
        folder = run_dir / f"seed{seed}"
        folder.mkdir(exist_ok=True)
        reports.append(write_judgements(config, folder, seed))
        for arm in ARMS:
            keep(folder / f"{arm}.json", train, config, folder, arm, seed)
            results.append(load_json(folder / f"{arm}.json"))
    show(results, run_dir / "table.md")
    draw(reports[0], results, config.careful, run_dir / "crowd.png")
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
    write_rows(careful, folder / "careful.jsonl")
    write_rows(judged, folder / "all.jsonl")
    votes = as_votes(read_rows(folder / "all.jsonl"))
    found = crowd_report(votes, rng=np.random.default_rng(seed))
    agreed = consensus_rows(found.judged, found.model)
    write_rows(agreed, folder / "consensus.jsonl")
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
    epochs = max(1, round(config.updates * config.batch_size / count))
    summary = reward_model.main(
        reward_model.Config(
            folder / arm,
            DataConfig(str(path), str(folder.parent / "gold.jsonl")),
            kind="pairwise",
            model=config.model,
            optim=config.optim,
            batch_size=count * epochs // config.updates,
            epochs=epochs,
            devices=1,
            eval_every=10_000,
            save_every=10_000,
            seed=seed,
            resume=True,
        )
    )
    accuracy = summary["reward/eval_accuracy"]
    return {"arm": arm, "seed": seed, "pairs": count, "accuracy": accuracy}


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
