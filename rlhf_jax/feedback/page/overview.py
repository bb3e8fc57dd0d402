"""How far the labelling is, and how far people agree: numbers to look at."""

import json
import sqlite3
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.feedback.agreement import (
    Agreement,
    Interval,
    alpha_interval,
    measure_agreement,
)
from rlhf_jax.feedback.page.tasks import Plan
from rlhf_jax.feedback.votes import Votes

VOTES = """
SELECT tasks.item, tasks.annotator, tasks.repeat, events.value, events.seconds
FROM tasks JOIN events ON events.number = tasks.event WHERE tasks.state = 'vote'"""
SKIPS = """
SELECT tasks.annotator, events.value FROM tasks JOIN events
ON events.number = tasks.event WHERE tasks.state = 'skip'"""
RESAMPLES = 200  # of the interval: the page asks every few seconds
ENOUGH = 10  # items of several people; a bootstrap of fewer is too sure of itself


class Judgement(NamedTuple):
    """What somebody said of an item."""

    item: Hashable
    annotator: int
    values: tuple[float, ...]  # ranks, or a single rating


def overview(db: sqlite3.Connection, plan: Plan) -> dict[str, Any]:
    """What the overview page shows. No reference."""
    votes, skips = db.execute(VOTES).fetchall(), db.execute(SKIPS).fetchall()
    said = [
        Judgement(vote["item"], vote["annotator"], _values(vote["value"]))
        for vote in votes
    ]
    first = [j for j, vote in zip(said, votes, strict=True) if not vote["repeat"]]
    judged = Counter(judgement.item for judgement in first)
    reasons = Counter(json.loads(skip["value"])["reason"] for skip in skips)
    together = agreement_so_far(first, resamples=RESAMPLES)
    return {
        "items": db.execute("SELECT count(*) FROM items").fetchone()[0],
        "finished": sum(count >= plan.votes for count in judged.values()),
        "votes_wanted": plan.votes,
        "votes": len(votes),
        "skips": dict(sorted(reasons.items())),
        "agreement": None if together is None else together.percent.value,
        "alpha": None if together is None else _alpha(together.alpha, judged),
        "annotators": _annotators(db, votes, skips, together, said),
    }


def agreement_so_far(
    said: Sequence[Judgement], *, resamples: int = 0
) -> Agreement | None:
    """Alpha and percent of those who judged the same items. No reference.

    The numbers of ``python -m rlhf_jax.feedback agreement``, see ``crowd_report``:
    ordinal alpha of the ratings, or of worse < tie < better on every pair of
    completions; percent of the pairs of votes on the same.

    Args:
      said: of any items; an annotator's second judgement of one is a further vote.
      resamples: of alpha's interval; 0 leaves intervals out, as NaN.

    Returns:
      Both, and each annotator's percent, by number; None where no item has two votes.

    >>> said = [Judgement("p", 0, (0, 1, 2)), Judgement("p", 1, (0, 2, 1))]
    >>> found = agreement_so_far(said)
    >>> round(found.percent.value, 2), round(found.alpha.value, 2)
    (0.67, 0.39)
    """
    counts = Counter(judgement.item for judgement in said)
    shared = [judgement for judgement in said if counts[judgement.item] > 1]
    if not shared:
        return None
    votes, rng = _votes(shared), np.random.default_rng(0)
    found = measure_agreement(votes, level="ordinal", rng=rng, resamples=0)
    alpha = alpha_interval(votes, level="ordinal", rng=rng, resamples=resamples)
    return found._replace(alpha=alpha)


def _votes(said: Sequence[Judgement]) -> Votes:
    """As `ranking_votes` and `rating_votes`, but for ten thousand in milliseconds."""
    number = {item: n for n, item in enumerate({j.item: None for j in said})}
    stride = max(len(judgement.values) for judgement in said) ** 2
    found = []
    for size in {len(judgement.values) for judgement in said}:
        same = [judgement for judgement in said if len(judgement.values) == size]
        given = np.array([judgement.values for judgement in same], float)
        if size > 1:
            one, other = np.nonzero(~np.eye(size, dtype=bool))
            given = np.sign(given[:, other] - given[:, one])
        item = np.array([number[judgement.item] for judgement in same])
        who = np.array([judgement.annotator for judgement in same])
        unit = item[:, None] * stride + np.arange(given.shape[1])[None]
        found.append((unit.ravel(), np.repeat(who, given.shape[1]), given.ravel()))
    unit, who, value = map(np.concatenate, zip(*found, strict=True))
    units, unit = np.unique(unit, return_inverse=True)
    return Votes(unit, who, value, units // stride)


def _annotators(
    db: sqlite3.Connection,
    votes: Sequence[sqlite3.Row],
    skips: Sequence[sqlite3.Row],
    together: Agreement | None,
    said: Sequence[Judgement],
) -> list[dict[str, Any]]:
    # With oneself: as if what somebody judged twice were nobody else's item.
    times = Counter((j.item, j.annotator) for j in said)
    twice = Counter(who for (_, who), count in times.items() if count > 1)
    own = [
        j._replace(item=(j.item, j.annotator))
        for j in said
        if times[j.item, j.annotator] > 1
    ]
    alone = agreement_so_far(own)
    seconds: dict[int, list[float]] = defaultdict(list)
    for vote in votes:
        seconds[vote["annotator"]].append(vote["seconds"])
    skipped = Counter(skip["annotator"] for skip in skips)
    return [
        {
            "name": name,
            "votes": len(seconds[who]),
            "skips": skipped[who],
            "median_seconds": statistics.median(seconds[who]) if seconds[who] else None,
            "with_others": _share(together, who),
            "repeats": twice[who],
            "with_self": _share(alone, who),
        }
        for who, name in db.execute("SELECT id, name FROM annotators ORDER BY id")
    ]


def _share(found: Agreement | None, who: int) -> float | None:
    """Of an annotator's comparisons those that are equal; None without any."""
    if found is None or who >= len(found.each) or np.isnan(found.each[who].value):
        return None
    return found.each[who].value


def _alpha(
    alpha: Interval, judged: Mapping[Hashable, int]
) -> dict[str, float | None] | None:
    """For JSON, which has no NaN; without an interval while the items are few."""
    if np.isnan(alpha.value):
        return None
    known = sum(count > 1 for count in judged.values()) >= ENOUGH
    low, high = (alpha.low, alpha.high) if known else (None, None)
    return {"value": alpha.value, "low": low, "high": high}


def _values(value: str) -> tuple[float, ...]:
    judged = json.loads(value)
    return tuple(judged["ranks"]) if "ranks" in judged else (judged["rating"],)
