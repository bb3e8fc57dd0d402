"""Simulated users whose tastes are opposed, and the pairs of reviews that they judge.

All like warm reviews. Half of them like long ones, half short ones; half like the first
person ("i loved the plot"), half what speaks of the film alone ("the plot was great").
So there are four groups, and two of them are opposed in both.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.grammar import gold_sentiment, sample_review
from rlhf_jax.data.tiny_reviews import split_prompts

SIGNS = tuple(itertools.product((1, -1), repeat=2))  # of a group's two tastes
GROUPS = (
    "long, first person",
    "long, of the film",
    "short, first person",
    "short, of the film",
)
SPREAD = 0.2  # how far a user's tastes are from the group's, standard deviation

PROMPTS = {split: split_prompts(split) for split in ("train", "test")}


class Pair(NamedTuple):
    """Two reviews that are shown, and what they have in the eyes of the users."""

    prompt: str
    first: str
    second: str
    lead: np.ndarray  # [3]: how much warmer, longer, more in the first person it is

    def split(self) -> int:
        """How many of the four groups are in the minority: 0, 1 or 2."""
        first = sum(float(self.lead @ group) > 0 for group in group_tastes())
        return min(first, len(SIGNS) - first)


def group_tastes() -> np.ndarray:
    """[4, 3] of each group: how much warm, long, and in the first person is liked."""
    return np.array([(1.0, *signs) for signs in SIGNS])


def make_users(each: int, rng: random.Random) -> np.ndarray:
    """[4 · each, 3]: users, group after group."""
    noise = lambda: [rng.gauss(0.0, SPREAD) for _ in range(3)]
    return np.array([g + noise() for g in group_tastes() for _ in range(each)])


def make_pair(rng: random.Random, split: str) -> Pair:
    """Two reviews after a prompt of a split; short ones may be the same: not these."""
    first = second = make_review(rng)
    while second == first:
        second = make_review(rng)
    lead = (qualities(first) - qualities(second)) / SCALE
    return Pair(rng.choice(PROMPTS[split]), first, second, lead)


def make_review(rng: random.Random) -> str:
    """One to five clauses of the grammar."""
    clauses = re.findall(r"[^.]+\.", sample_review(rng) + sample_review(rng))
    return "".join(clauses[: rng.randint(1, 5)])


def qualities(text: str) -> np.ndarray:
    """[3]: sentiment, words, and the share of clauses in the first person."""
    clauses = [clause.split() for clause in text.split(".") if clause.strip()]
    own = sum(clause[0] == "i" for clause in clauses) / len(clauses)
    return np.array([gold_sentiment(text), sum(map(len, clauses)), own])


def says(
    taste: np.ndarray, pair: Pair, *, temperature: float, rng: random.Random
) -> bool:
    """Whether a user says that the first is better: σ of the lead / temperature."""
    lead = float(taste @ pair.lead) / temperature
    return rng.random() < 1 / (1 + math.exp(-max(-60.0, min(60.0, lead))))


def judged_rows(
    users: Iterable[tuple[int, np.ndarray]],
    *,
    split: str,
    labels: int,
    temperature: float,
    rng: random.Random,
) -> list[dict[str, Any]]:
    """Rows of preferences with their annotators' numbers, so many pairs each."""
    rows = []
    for who, taste in users:
        for _ in range(labels):
            pair = make_pair(rng, split)
            first = says(taste, pair, temperature=temperature, rng=rng)
            rows.append(as_row(pair, first) | {"annotator": who})
    return rows


def as_row(pair: Pair, first: bool) -> dict[str, Any]:
    """A row of preferences."""
    better, worse = (pair.first, pair.second) if first else (pair.second, pair.first)
    return {"prompt": pair.prompt, "chosen": better, "rejected": worse}


# Standard deviations, so that the tastes weigh the same.
SCALE = np.std([qualities(make_review(random.Random(n))) for n in range(2000)], axis=0)
