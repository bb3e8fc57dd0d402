"""Simulated crowds for tests: items of known order, judged by careful and careless."""

import random

from experiments.simulation import Person, judge, make_crowd
from rlhf_jax.data import Ranking, Row, rankings


def crowd_rankings(
    seed: int, *, items: int, careful: int, careless: int, votes=3, completions=4
) -> tuple[list[Ranking], list[Person], dict[tuple[str, str], float]]:
    """(rankings, people, gold of each (prompt, completion))."""
    rng = random.Random(seed)
    rows = []
    for n in range(items):
        texts = [f"{n}.{k}" for k in range(completions)]
        golds = [rng.uniform(-1, 1) for _ in texts]
        values = {"prompt": f"p{n}", "completions": texts, "golds": golds}
        rows.append(Row(values, "simulated", n + 1))
    crowd = make_crowd(careful, careless)
    judged = judge(rows, crowd, votes=votes, rng=rng)
    gold = {
        (row.values["prompt"], text): g
        for row in rows
        for text, g in zip(row.values["completions"], row.values["golds"], strict=True)
    }
    found = rankings(Row(row, "judged.jsonl", n) for n, row in enumerate(judged, 1))
    return found, crowd, gold
