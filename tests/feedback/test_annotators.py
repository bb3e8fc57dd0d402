"""Dawid–Skene against its paper and a loop; the careless are named, others are not."""

import math

import numpy as np
import pytest
from feedback.crowds import crowd_rankings

from rlhf_jax.data import Ranking
from rlhf_jax.feedback import (
    Votes,
    annotator_abilities,
    dawid_skene,
    gold_accuracy,
    ranking_votes,
    self_agreement,
    table_votes,
    vote_weights,
    wilson_interval,
)

# Dawid & Skene 1979, table 1: 45 patients, three answers of observer 1, one of each of
# the others.
PATIENTS = """
1111111 3334334 1122122 2223121 2223222 2223322 1222111 3333433 2222223 2322223
4444444 2223343 1111111 2223212 1211111 1112111 1111111 1111111 2222221 2221322
2222222 2222221 2223222 2212222 1111111 1111111 2322222 1111111 1111111 1121121
1111111 3333233 1111111 2222222 2223232 4334343 2212232 2323233 3333432 1111111
1111111 1212111 2322222 1211111 2222222
""".split()


def patients() -> Votes:
    said = np.array([[float(c) for c in row] for row in PATIENTS])
    return Votes(
        np.repeat(np.arange(45), 7),
        np.tile([0, 0, 0, 1, 2, 3, 4], 45),
        said.ravel(),
        np.arange(45),
    )


def test_the_paper_s_example():
    found = dawid_skene(patients(), smoothing=0.0)
    assert found.values.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(found.prior, [0.40, 0.42, 0.11, 0.07], atol=5e-3)
    first = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0]]
    np.testing.assert_allclose(found.confusion[0, :2], first, atol=5e-3)
    last = [[0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
    np.testing.assert_allclose(found.confusion[0, 2:], last, atol=5e-3)


def by_loops(votes: Votes, iterations: int) -> tuple[np.ndarray, float]:
    """(posterior, log-likelihood): the paper's equations, one number at a time."""
    values = sorted(set(votes.value))
    units, people, classes = len(votes.item), max(votes.annotator) + 1, len(values)
    entries = [
        (u, a, values.index(v))
        for u, a, v in zip(votes.unit, votes.annotator, votes.value, strict=True)
    ]
    posterior = np.zeros((units, classes))
    for u, _, v in entries:
        posterior[u, v] += 1
    posterior /= posterior.sum(axis=1)[:, None]
    likelihood = 0.0
    for _ in range(iterations):
        prior = [posterior[:, j].sum() / units for j in range(classes)]
        table = np.zeros((people, classes, classes))
        for u, a, v in entries:
            for j in range(classes):
                table[a, j, v] += posterior[u, j]
        table /= table.sum(axis=2)[:, :, None]
        joint = np.array([list(prior) for _ in range(units)])
        for u, a, v in entries:
            for j in range(classes):
                joint[u, j] *= table[a, j, v]
        likelihood = sum(math.log(sum(row)) for row in joint)
        posterior = joint / joint.sum(axis=1)[:, None]
    return posterior, likelihood


def test_dawid_skene_by_loops():
    found = dawid_skene(patients(), smoothing=0.0, max_iterations=4, tolerance=0.0)
    posterior, likelihood = by_loops(patients(), 4)
    np.testing.assert_allclose(found.posterior, posterior, atol=1e-9)
    assert found.objectives[-1] == pytest.approx(likelihood)


@pytest.mark.parametrize("smoothing", [0.0, 4.0])
@pytest.mark.parametrize("seed", range(12))
def test_em_never_falls(seed, smoothing):
    rng = np.random.default_rng(seed)
    table = rng.integers(3, size=(30, 4)).astype(float)
    table[rng.random(table.shape) < 0.4] = np.nan
    table[np.isnan(table).all(axis=1), 0] = 1
    found = dawid_skene(
        table_votes(table), smoothing=smoothing, tolerance=0.0, max_iterations=50
    )
    rises = np.diff(found.objectives)
    assert len(rises) > 3 and rises.min() > -1e-9 and rises.max() > 1e-3
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1)


def test_who_agrees_with_the_good_is_believed_more():
    """Three good against four at random: their consensus is better than a majority."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=400)
    flip = lambda share: np.where(rng.random(400) < share, 1 - truth, truth)
    said = [flip(0.1) for _ in range(3)] + [flip(0.5) for _ in range(4)]
    votes = table_votes(np.stack(said, axis=1))
    found = dawid_skene(votes)
    majority = np.mean((np.mean(said, axis=0) > 0.5) == truth)
    consensus = np.mean((found.posterior[:, 1] > 0.5) == truth)
    assert consensus > 0.95 > majority + 0.05


@pytest.mark.fault(30)
def test_bad_votes():
    with pytest.raises(ValueError, match="at least one vote on every unit"):
        dawid_skene(table_votes(np.array([[1.0], [np.nan]])))
    with pytest.raises(ValueError, match="smoothing = -1.0: expected 0 or more"):
        dawid_skene(patients(), smoothing=-1.0)


def test_ability_is_cohen_s_kappa_where_the_others_are_sure():
    """Ten sure votes on each unit; the last annotator is wrong in 10 + 20 of 100."""
    truth = np.repeat([0.0, 1.0], 50)
    last = truth.copy()
    last[:10], last[60:80] = 1, 0
    votes = table_votes(np.stack([*10 * [truth], last], axis=1))
    found = annotator_abilities(votes, dawid_skene(votes), rng=np.random.default_rng(0))
    # Pₒ = 0.7; said 0 in 60 of 100, true in 50: Pₑ = 0.6 · 0.5 + 0.4 · 0.5.
    assert found[-1].ability.value == pytest.approx((0.7 - 0.5) / 0.5, abs=1e-6)
    assert found[0].ability.value == pytest.approx(1, abs=1e-6)
    assert found[-1].votes == 100


def test_votes_count_as_abilities_do():
    rankings, crowd, _ = crowd_rankings(3, items=60, careful=5, careless=1)
    votes = ranking_votes(rankings[:-9]).votes  # not all have judged as many
    model, rng = dawid_skene(votes), np.random.default_rng(0)
    found = annotator_abilities(votes, model, rng=rng, resamples=1)
    weights = vote_weights(votes, model, smoothing=6.0)
    assert len(weights) == 6 and crowd[5].careless
    for who, (weight, known) in enumerate(zip(weights, found, strict=True)):
        shared = np.bincount(votes.unit)[votes.unit] > 1
        items = len(set(votes.item[votes.unit[shared & (votes.annotator == who)]]))
        ability = max(0.0, (items * known.ability.value + 3) / (items + 6))
        assert weight == pytest.approx(max(ability**2, 0.001))
    assert weights[5] < 0.3 * weights[:5].min()


def test_who_is_alone_or_not_to_be_believed_still_counts():
    said = [judge_one((0, 1), who, item) for who in (0, 1, 2) for item in range(30)]
    said += [judge_one((1, 0), 3, item) for item in range(30)]  # against all others
    said += [judge_one((0, 1), 4, 99)]  # of what nobody else has seen
    votes = ranking_votes(said).votes
    model = dawid_skene(votes)
    found = annotator_abilities(votes, model, rng=np.random.default_rng(0), resamples=9)
    assert np.isnan(found[4].ability.value) and not found[4].careless
    weights = vote_weights(votes, model)
    assert weights[3:].tolist() == [0.001, 0.25] and weights[:3].min() > 0.5
    with pytest.raises(ValueError, match="smoothing = -1.0: expected 0 or more"):
        vote_weights(votes, model, smoothing=-1.0)


def named(seed: int, **options) -> tuple[int, int, int, int]:
    """(careful named, careful people, careless named, careless people)."""
    rankings, crowd, _ = crowd_rankings(seed, **options)
    judged, rng = ranking_votes(rankings), np.random.default_rng(seed)
    model = dawid_skene(judged.votes)
    found = annotator_abilities(judged.votes, model, rng=rng, resamples=200)
    who = [w for w, x in zip(judged.annotators, found, strict=True) if x.careless]
    right = sum(crowd[w].careless for w in who)
    wrong = len(who) - right
    careless = sum(p.careless for p in crowd)
    return wrong, len(crowd) - careless, right, careless


def test_no_false_alarm_in_a_careful_crowd():
    counts = [named(s, items=80, careful=10, careless=0)[:2] for s in range(20)]
    wrong, people = np.sum(counts, axis=0)
    assert people == 200 and wrong <= 2


def test_the_careless_fifth_is_named():
    """With 45 rankings of four each, and no careful person with them."""
    counts = [named(s, items=150, careful=8, careless=2) for s in range(15)]
    wrong, careful, right, careless = np.sum(counts, axis=0)
    assert careless == 30 and right >= 28
    assert careful == 120 and wrong <= 1


def test_who_has_judged_little_is_not_named():
    counts = [named(s, items=6, careful=8, careless=2) for s in range(10)]
    assert np.sum(counts, axis=0)[[0, 2]].tolist() == [0, 0]


def judge_one(ranks: tuple[int, ...], who: int, item: int = 0) -> Ranking:
    texts = tuple("abcd"[: len(ranks)])
    return Ranking(f"p{item}", texts, ranks, annotator=who)


def test_gold_items_by_hand():
    gold = [judge_one((0, 1, 2), 0, item) for item in (0, 1)]
    said = [
        judge_one((0, 1, 2), 5, 0),  # all three pairs right
        judge_one((0, 2, 1), 5, 1),  # two of three
        judge_one((2, 1, 0), 5, 2),  # not a gold item
        judge_one((0, 0, 0), 8, 0),  # a tie is not what gold says
        judge_one((0, 1, 2), 9, 2),
    ]
    found = gold_accuracy(ranking_votes(said), ranking_votes(gold))
    assert found[0] == wilson_interval(5 / 6, 2)  # two items: two trials
    assert found[1].value == 0 and np.isnan(found[2].value)


def test_repeats_by_hand():
    said = [
        judge_one((0, 1, 2), 5),
        judge_one((0, 1, 2), 6),
        judge_one((0, 2, 1), 5),  # one pair of three is the other way
        judge_one((0, 1, 2), 5),  # as the first time
    ]
    judged = ranking_votes(said)
    assert len(judged.votes.value) == 2 * 6  # repeats are no further votes
    five, six = self_agreement(judged)
    assert five == wilson_interval(5 / 6, 2) and np.isnan(six.value)
