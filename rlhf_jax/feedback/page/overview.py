"""How far the labelling is, and how far people agree: numbers to look at."""

import itertools
import json
import sqlite3
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.feedback.page.tasks import Plan

VOTES = """
SELECT tasks.item, tasks.annotator, tasks.repeat, events.value, events.seconds
FROM tasks JOIN events ON events.number = tasks.event WHERE tasks.state = 'vote'"""
SKIPS = """
SELECT tasks.annotator, events.value FROM tasks JOIN events
ON events.number = tasks.event WHERE tasks.state = 'skip'"""


def overview(db: sqlite3.Connection, plan: Plan) -> dict[str, Any]:
    """What the overview page shows. No reference."""
    votes, skips = db.execute(VOTES).fetchall(), db.execute(SKIPS).fetchall()
    first, again = defaultdict(dict), defaultdict(dict)
    for vote in votes:
        judgements = again if vote["repeat"] else first
        judgements[vote["item"]][vote["annotator"]] = _judgement(vote["value"])
    items = db.execute("SELECT count(*) FROM items").fetchone()[0]
    reasons = [json.loads(skip["value"])["reason"] for skip in skips]
    return {
        "items": items,
        "finished": sum(len(found) >= plan.votes for found in first.values()),
        "votes_wanted": plan.votes,
        "votes": len(votes),
        "skips": {reason: reasons.count(reason) for reason in sorted({*reasons})},
        "agreement": agreement_so_far(first.values()),
        "annotators": [
            _annotator(row, votes, skips, first, again)
            for row in db.execute("SELECT id, name FROM annotators ORDER BY id")
        ],
    }


def agreement_so_far(items: Iterable[dict[int, Sequence[float]]]) -> float | None:
    """Share of comparisons on which two annotators of an item agree. No reference.

    Args:
      items: for each item {annotator: ranks, or a single rating}.

    Returns:
      Over all pairs of annotators: for ranks, of all pairs of completions, the share
      with the same one ahead, or tied by both; for ratings, the share of equal ones.
      None where no two people judged the same item.

    >>> agreement_so_far([{0: (0, 1, 2), 1: (0, 2, 1)}, {0: (1,), 1: (1,)}])
    0.75
    """
    same = [
        equal
        for judged in items
        for one, other in itertools.combinations(judged.values(), 2)
        for equal in _comparisons(one, other)
    ]
    return sum(same) / len(same) if same else None


def _comparisons(one: Sequence[float], other: Sequence[float]) -> list[bool]:
    if len(one) == 1:
        return [one[0] == other[0]]
    sign = lambda ranks, i, j: (ranks[i] > ranks[j]) - (ranks[i] < ranks[j])
    pairs = itertools.combinations(range(len(one)), 2)
    return [sign(one, i, j) == sign(other, i, j) for i, j in pairs]


def _judgement(value: str) -> tuple[float, ...]:
    judged = json.loads(value)
    return tuple(judged["ranks"]) if "ranks" in judged else (judged["rating"],)


def _annotator(
    row: sqlite3.Row,
    votes: Sequence[sqlite3.Row],
    skips: Sequence[sqlite3.Row],
    first: dict[str, dict[int, Any]],
    again: dict[str, dict[int, Any]],
) -> dict[str, Any]:
    me = row["id"]
    seconds = [vote["seconds"] for vote in votes if vote["annotator"] == me]
    twice = [
        {0: first[item][me], 1: judged[me]}
        for item, judged in again.items()
        if me in judged and me in first[item]
    ]
    others = [
        {0: judged[me], 1: theirs}
        for judged in first.values()
        if me in judged
        for other, theirs in judged.items()
        if other != me
    ]
    return {
        "name": row["name"],
        "votes": len(seconds),
        "skips": sum(skip["annotator"] == me for skip in skips),
        "median_seconds": statistics.median(seconds) if seconds else None,
        "with_others": agreement_so_far(others),
        "repeats": len(twice),
        "with_self": agreement_so_far(twice),
    }
