"""From what several annotators say of the same items to one set of preferences."""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.records import Preference, Ranking, Text
from rlhf_jax.feedback.annotators import DawidSkene, dawid_skene, vote_weights
from rlhf_jax.feedback.votes import Judged, ranking_votes

LEAST = 0.01  # share below which an order of a pair is left out


def consensus_preferences(rankings: Sequence[Ranking[Text]]) -> list[Preference[Text]]:
    """What a crowd prefers: each pair with the share of the votes that order it so.

    No reference. Votes count as their annotators' abilities: see ``consensus_pairs``,
    which takes a model that is fitted already.

    Args:
      rankings: of any items by any annotators, see ``ranking_votes``.

    Returns:
      Preferences item by item, the order with more votes of each pair first.

    Raises:
      DataError: see ``ranking_votes``.

    >>> say = lambda who, *ranks: Ranking("p", ("a", "b"), ranks, annotator=who)
    >>> for pair in consensus_preferences([say(0, 0, 1), say(1, 0, 1), say(2, 1, 0)]):
    ...     print(pair.chosen, pair.rejected, round(pair.weight, 2))
    a b 0.89
    b a 0.11
    """
    judged = ranking_votes(rankings)
    return consensus_pairs(judged, dawid_skene(judged.votes))


def consensus_pairs(judged: Judged, model: DawidSkene) -> list[Preference]:
    """Both orders of every pair, by shares of votes: p_ij = Σ_a w_a v_aij / Σ_a w_a.

    No reference. v_aij is 1 where annotator a says that i is better, ½ for a tie, and
    w_a = ``vote_weights``. The preferences weigh p_ij / pairs, so that those of an item
    sum to 1, as those of ``ranking_pairs`` do. The weighted loss is the cross-entropy
    with a soft label, −p log σ(d) − (1 − p) log σ(−d), which is least where σ(d) is
    what p is on average: the probability that somebody who reads prefers i, as
    Bradley–Terry has it. The model's posterior of the true order is something else:
    five votes of which three say i make it nearly sure, and a near tie a sure label.

    Args:
      judged: the votes and what the units are.
      model: fitted to them.

    Returns:
      Preferences item by item, the order with more votes of a pair before the other. An
      order of less than 1 % is left out, and its weight given to the other one.

    >>> rankings = [Ranking("p", ("a", "b"), (0, 0), annotator=n) for n in range(3)]
    >>> judged = ranking_votes(rankings)
    >>> [x.weight for x in consensus_pairs(judged, dawid_skene(judged.votes))]
    [0.5, 0.5]
    """
    votes = judged.votes
    weight = vote_weights(votes, model)[votes.annotator]
    total = lambda each: np.bincount(votes.unit, each, len(votes.item))
    better = total(weight * (1 + votes.value) / 2) / total(weight)
    sizes = np.bincount(votes.item)[votes.item]
    found = []
    orders = zip(
        judged.units, votes.item.tolist(), sizes.tolist(), better.tolist(), strict=True
    )
    for (prompt, first, second), _, size, p in sorted(
        orders, key=lambda order: (order[1], -order[3])
    ):
        if p >= LEAST:
            weight = (1.0 if p > 1 - LEAST else p) * 2 / size
            found.append(Preference(prompt, first, second, weight=weight))
    return found
