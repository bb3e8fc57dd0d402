"""People who are simulated: what they say of reviews whose sentiment is known."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data import Row
from rlhf_jax.data.tiny_reviews import COOLEST, WARMEST, simulated_ranks

Judgement = dict[str, Any]  # a row, as the labelling page exports it


class Person(NamedTuple):
    """How someone ranks."""

    temperature: float  # noise of those who read, in units of gold sentiment
    first: bool = False  # ranks in the order that is shown, unread

    @property
    def careless(self) -> bool:
        return self.first or math.isinf(self.temperature)


def make_crowd(careful: int, careless: int) -> list[Person]:
    """Careful people, more or less exact; then careless ones.

    Every other careless person clicks at random, the others from first to last.
    """
    span = math.log(WARMEST / COOLEST) / max(careful - 1, 1)
    return [Person(COOLEST * math.exp(span * n)) for n in range(careful)] + [
        Person(math.inf, first=bool(n % 2)) for n in range(careless)
    ]


def judge(
    rows: Iterable[Row], crowd: Sequence[Person], *, votes: int, rng: random.Random
) -> list[Judgement]:
    """Each row ranked by some of the crowd, completions shown in random order."""
    found = []
    for row in rows:
        completions, golds = row.values["completions"], row.values["golds"]
        for who in sorted(rng.sample(range(len(crowd)), votes)):
            shown = rng.sample(range(len(completions)), len(completions))
            if crowd[who].first:
                ranks = [shown.index(i) for i in range(len(completions))]
            else:
                temperature = crowd[who].temperature
                ranks = simulated_ranks(golds, temperature=temperature, rng=rng)
            found.append(
                {
                    "item": row.origin,
                    "prompt": row.values["prompt"],
                    "completions": list(completions),
                    "ranks": ranks,
                    "annotator": who,
                    "shown": shown,
                }
            )
    return found


def gold_pairs(rows: Iterable[Row]) -> list[Judgement]:
    """All pairs of completions that the truth orders, the better one chosen."""
    found = []
    for row in rows:
        texts = sorted(zip(row.values["golds"], row.values["completions"], strict=True))
        found += [
            {"prompt": row.values["prompt"], "chosen": better, "rejected": worse}
            for i, (low, worse) in enumerate(texts)
            for high, better in texts[i + 1 :]
            if high > low
        ]
    return found
