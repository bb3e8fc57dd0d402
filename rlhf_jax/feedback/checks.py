"""Items that measure annotators: gold ones, and those that come again."""

import numpy as np

from rlhf_jax.feedback.agreement import Interval, wilson_interval
from rlhf_jax.feedback.votes import Judged, Votes


def gold_accuracy(judged: Judged, gold: Judged) -> list[Interval]:
    """Share of the votes on gold units that say what gold says, by annotator.

    Intervals are Wilson's (1927, doi:10.1080/01621459.1927.10502953) with as many
    trials as items, for the pairs of one ranking are not independent.

    Args:
      judged: the annotators' votes.
      gold: rankings known to be right, as ``ranking_votes`` gives them; the first one
        of an item counts.

    Returns:
      One an annotator, NaN without gold items.

    >>> from rlhf_jax.data import Ranking
    >>> from rlhf_jax.feedback import ranking_votes
    >>> one, two = (Ranking("p", ("a", "b"), r, annotator=0) for r in ((0, 1), (1, 0)))
    >>> gold_accuracy(ranking_votes([one]), ranking_votes([two]))[0].value
    0.0
    """
    truth: dict = {}
    for unit, value in zip(gold.votes.unit, gold.votes.value, strict=True):
        truth.setdefault(gold.units[unit], value)
    wanted = np.array([truth.get(unit, np.nan) for unit in judged.units], float)
    return _shares(judged.votes, wanted[judged.votes.unit], judged)


def self_agreement(judged: Judged) -> list[Interval]:
    """Share of repeated votes that are as the first ones, by annotator.

    No reference.

    Intervals as for ``gold_accuracy``.

    Args:
      judged: the annotators' votes, with those that they cast ``again``.

    Returns:
      One an annotator, NaN without repeated items.

    >>> from rlhf_jax.data import Ranking
    >>> from rlhf_jax.feedback import ranking_votes
    >>> twice = 2 * [Ranking("p", ("a", "b"), (0, 1), annotator=0)]
    >>> self_agreement(ranking_votes(twice))[0].value
    1.0
    """
    first = {
        (unit, who): value
        for unit, who, value in zip(
            judged.votes.unit, judged.votes.annotator, judged.votes.value, strict=True
        )
    }
    again = judged.again
    before = [first[key] for key in zip(again.unit, again.annotator, strict=True)]
    return _shares(again, np.array(before, float), judged)


def _shares(votes: Votes, wanted: np.ndarray, judged: Judged) -> list[Interval]:
    """Of votes that are as wanted (NaN: not known), by annotator."""
    known, found = ~np.isnan(wanted), []
    for a in range(len(judged.annotators)):
        own = known & (votes.annotator == a)
        # Each judgement of an item is one trial, however many pairs it has.
        trials = np.sum(1 / np.bincount(votes.item)[votes.item[votes.unit[own]]])
        right = votes.value[own] == wanted[own]
        share = float(right.mean()) if len(right) else np.nan
        found.append(wilson_interval(share, float(trials)))
    return found
