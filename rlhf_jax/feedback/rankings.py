"""From rankings of several answers to pairs of them, or to good and bad ones."""

from rlhf_jax.data.records import Labeled, Preference, Ranking, Text


def ranking_pairs(ranking: Ranking[Text]) -> list[Preference[Text]]:
    """All pairs of a ranking, the preferred one first: {(i, j) : rankᵢ < rankⱼ}.

    Ouyang et al. 2022, arXiv:2203.02155, section 3.5: the pairs of one prompt are
    correlated, so together they count as much as one judgement. Each pair weighs
    1 / number of pairs.

    Args:
      ranking: K completions with their ranks, 0 the best; as texts or as token ids.

    Returns:
      At most K(K − 1)/2 preferences, best completions first; none if all are tied.
      Tied pairs say nothing about which is better and are left out.

    >>> ranking = Ranking("2 + 2 =", (" 5", " 4", " 22"), ranks=(1, 0, 1), annotator=7)
    >>> for pair in ranking_pairs(ranking):
    ...     print(pair.chosen, pair.rejected, pair.weight, pair.annotator)
     4  5 0.5 7
     4  22 0.5 7
    """
    ranked = sorted(
        zip(ranking.ranks, ranking.completions, strict=True), key=lambda pair: pair[0]
    )
    pairs = [
        (better, worse)
        for i, (rank, better) in enumerate(ranked)
        for other_rank, worse in ranked[i + 1 :]
        if rank < other_rank
    ]
    return [
        Preference(
            ranking.prompt,
            better,
            worse,
            annotator=ranking.annotator,
            weight=1.0 / len(pairs),
            origin=ranking.origin,
        )
        for better, worse in pairs
    ]


def ranking_labels(ranking: Ranking[Text]) -> list[Labeled[Text]]:
    """Good is what beats more than half of the others, bad what beats less.

    No reference. A tie counts as half a win; what beats just half of them is left out.

    Args:
      ranking: K completions with their ranks, 0 the best; as texts or as token ids.

    Returns:
      At most K labelled completions, in the ranking's order.

    >>> ranking = Ranking("2 + 2 =", (" 5", " 4", " four"), ranks=(2, 0, 1))
    >>> [(labelled.completion, labelled.label) for labelled in ranking_labels(ranking)]
    [(' 5', 0), (' 4', 1)]
    """
    ranks = ranking.ranks
    lead = lambda rank: (
        sum(other > rank for other in ranks) - sum(other < rank for other in ranks)
    )
    return [
        Labeled(ranking.prompt, completion, int(lead(rank) > 0), ranking.origin)
        for completion, rank in zip(ranking.completions, ranks, strict=True)
        if lead(rank)
    ]
