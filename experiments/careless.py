"""How often careless people are named, and careful ones with them, in simulated crowds.

  python -m experiments.careless
  python -m experiments.careless --crowds 50

Crowds of several sizes rank completions whose order is known, three people an item. The
careful have the noise of TinyReviews' annotators; every other careless person ranks at
random, the others in the order that is shown. The table is printed and written to
table.md; docs/feedback.md has the numbers. No model is trained: CPU, a minute or two.
"""

import dataclasses
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import cli
from experiments.simulation import judge, make_crowd
from rlhf_jax.data import Row, rankings
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import annotator_abilities, dawid_skene, ranking_votes
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.terminal import print_table

VOTES = 3  # people an item
COLUMNS = [
    "completions an item",
    "items an annotator",
    "people, careless",
    "careful people named",
    "careless people not named",
]


class Crowd(NamedTuple):
    """What a crowd is asked, and how many of it do not read."""

    completions: int  # of an item
    items: int  # an annotator, on average
    people: int
    careless: int


CROWDS = (
    Crowd(4, 30, 10, 0),
    Crowd(4, 50, 20, 0),
    Crowd(2, 90, 10, 0),
    Crowd(4, 20, 10, 2),
    Crowd(4, 30, 10, 2),
    Crowd(4, 50, 20, 4),
    Crowd(2, 30, 10, 2),
    Crowd(2, 90, 10, 2),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Who is named careless in simulated crowds."""

    run_dir: Path = Path("runs/careless")
    """Where the table goes."""
    crowds: int = 15
    """Of each size."""
    resamples: int = 1000
    """Draws of the items, for the intervals."""

    def __post_init__(self):
        if self.crowds < 1 or self.resamples < 1:
            raise UserError(
                f"crowds = {self.crowds}, resamples = {self.resamples}: expected 1 or "
                "more of each"
            )


def main(config: Config) -> list[list[str]]:
    """Simulates all crowds and shows who was named."""
    run_dir = create_run_dir(config.run_dir, config, resume=True)
    rows = []
    for crowd in CROWDS:
        seeds = range(config.crowds)
        found = [named(crowd, seed, resamples=config.resamples) for seed in seeds]
        wrong, missed = np.sum(found, axis=0)
        careful = config.crowds * (crowd.people - crowd.careless)
        careless = config.crowds * crowd.careless
        lost = f"{missed} of {careless}" if careless else "–"
        who = f"{crowd.people}, {crowd.careless}"
        asked = [str(crowd.completions), str(crowd.items), who]
        rows.append([*asked, f"{wrong} of {careful}", lost])
    print_table(f"Careless people, {config.crowds} crowds each", COLUMNS, rows)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (run_dir / "table.md").write_text(text, encoding="utf-8")
    return rows


def named(crowd: Crowd, seed: int, *, resamples: int) -> tuple[int, int]:
    """(careful people who are named careless, careless people who are not)."""
    rng = random.Random(f"careless/{crowd}/{seed}")
    people = make_crowd(crowd.people - crowd.careless, crowd.careless)
    asked = [item(n, crowd.completions, rng) for n in range(count(crowd))]
    judged = judge(asked, people, votes=VOTES, rng=rng)
    said = rankings(Row(row, "simulated", n) for n, row in enumerate(judged, 1))
    votes, _, _, ids = ranking_votes(said)
    draws = np.random.default_rng(seed)
    model = dawid_skene(votes)
    found = annotator_abilities(votes, model, rng=draws, resamples=resamples)
    accused = {who for who, known in zip(ids, found, strict=True) if known.careless}
    true = {who for who, person in enumerate(people) if person.careless}
    return len(accused - true), len(true - accused)


def count(crowd: Crowd) -> int:
    """Items of all together."""
    return round(crowd.items * crowd.people / VOTES)


def item(number: int, completions: int, rng: random.Random) -> Row:
    """Completions of known worth, as far apart as chance has them."""
    texts = [f"{number}.{k}" for k in range(completions)]
    golds = [rng.uniform(-1, 1) for _ in texts]
    values = {"prompt": f"p{number}", "completions": texts, "golds": golds}
    return Row(values, "simulated", number + 1)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
