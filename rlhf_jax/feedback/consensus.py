"""From what several annotators say of the same items to one set of preferences."""

from collections.abc import Sequence

from rlhf_jax.data.records import Preference, Ranking, Text
from rlhf_jax.feedback.annotators import DawidSkene, dawid_skene
from rlhf_jax.feedback.votes import Judged, ranking_votes

LEAST = 0.01  # probability below which an order of a pair is left out


def consensus_preferences(rankings: Sequence[Ranking[Text]]) -> list[Preference[Text]]:
    """What a crowd prefers: each pair with the probability that it is so ordered.

    Dawid & Skene 1979, doi:10.2307/2346806, for the probabilities: see
    ``consensus_pairs``, which takes a model that is fitted already.

    Args:
      rankings: of any items by any annotators, see ``ranking_votes``.

    Returns:
      Preferences item by item, the more probable order of each pair first.

    Raises:
      DataError: see ``ranking_votes``.

    >>> say = lambda who, *ranks: Ranking("p", ("a", "b"), ranks, annotator=who)
    >>> for pair in consensus_preferences([say(0, 0, 1), say(1, 0, 1), say(2, 1, 0)]):
    ...     print(pair.chosen, pair.rejected, round(pair.weight, 2))
    a b 0.88
    b a 0.12
    """
    judged = ranking_votes(rankings)
    return consensus_pairs(judged, dawid_skene(judged.votes))


def consensus_pairs(judged: Judged, model: DawidSkene) -> list[Preference]:
    """Both orders of every pair, weighed by their probabilities: w_ij = p_ij / pairs.

    No reference. p_ij = P(i is better) + P(tie)/2, so that p_ij + p_ji = 1 and the
    weights of an item sum to 1, as those of ``ranking_pairs`` do. The weighted loss is
    then the loss's mean over what may be true: −p log σ(d) − (1 − p) log σ(−d), the
    cross-entropy with a soft label. One row with weight 2p − 1 would have the same
    slope where d is 0, but nothing would hold the scores of a tied or contested pair
    together; and pairs of two completions could not count once.

    Args:
      judged: the votes and what the units are.
      model: fitted to them.

    Returns:
      Preferences item by item, the more probable order of a pair before the other. An
      order of less than 1 % is left out, and its weight given to the other one.

    >>> rankings = [Ranking("p", ("a", "b"), (0, 0), annotator=n) for n in range(3)]
    >>> judged = ranking_votes(rankings)
    >>> [x.weight for x in consensus_pairs(judged, dawid_skene(judged.votes))]
    [0.5, 0.5]
    """
    better = model.posterior @ ((1 + model.values) / 2)
    sizes: dict[int, int] = {}
    for item in judged.votes.item.tolist():
        sizes[item] = sizes.get(item, 0) + 1
    found = []
    orders = zip(judged.units, judged.votes.item.tolist(), better.tolist(), strict=True)
    for (prompt, first, second), item, p in sorted(
        orders, key=lambda order: (order[1], -order[2])
    ):
        if p >= LEAST:
            weight = (1.0 if p > 1 - LEAST else p) * 2 / sizes[item]
            found.append(Preference(prompt, first, second, weight=weight))
    return found
