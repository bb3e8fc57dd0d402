"""Alpha against published examples and nltk; intervals; agreement with the others."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, kendalltau

from rlhf_jax.data import Ranking
from rlhf_jax.feedback import (
    Votes,
    krippendorff_alpha,
    measure_agreement,
    ranking_votes,
    table_votes,
    wilson_interval,
)


def table(*observers: str) -> np.ndarray:
    """A row a unit, from a text an observer with a digit a unit; a point is no vote."""
    values = [[np.nan if c == "." else float(c) for c in text] for text in observers]
    return np.array(values).T


# Krippendorff 2011: A, two observers of binary data; B, of nominal data (a … e as 1 …
# 5); C and D, four observers and missing votes. Then the example of Wikipedia.
BINARY = table("0100000010", "1110010000")
NOMINAL = table("112243335441", "212223335444")
MISSING = table("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
THREE = table(".....34121133.3", "1.213343.......", "..21344.21133.4")


@pytest.mark.parametrize(
    "votes, level, published",
    [
        (BINARY, "nominal", 0.095),
        (NOMINAL, "nominal", 0.692),
        (MISSING, "nominal", 0.743),
        (MISSING, "ordinal", 0.815),
        (MISSING, "interval", 0.849),
        (THREE, "nominal", 0.691),
        (THREE, "interval", 0.811),
    ],
)
def test_published_examples(votes, level, published):
    found = krippendorff_alpha(table_votes(votes), level=level)
    assert found == pytest.approx(published, abs=6e-4)


def random_table(seed: int) -> np.ndarray:
    """Up to five annotators whose votes have something in common; some missing."""
    rng = np.random.default_rng(seed)
    units, people, values = rng.integers([4, 2, 2], [30, 6, 6])
    truth = rng.integers(values, size=(units, 1))
    noise = rng.integers(values, size=(units, people))
    votes = np.where(rng.random((units, people)) < 0.5, truth, noise).astype(float)
    votes[rng.random((units, people)) < 0.3] = np.nan
    votes[0, :2] = 0, 1  # there are two votes, and they differ
    return votes


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(25))
def test_as_nltk(level, seed):
    agreement = pytest.importorskip("nltk.metrics.agreement")
    votes = random_table(seed)
    paired = votes[np.sum(~np.isnan(votes), axis=1) > 1]
    n = {v: np.sum(paired == v) for v in np.unique(paired[~np.isnan(paired)])}

    def distance(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        between = sum(n[v] for v in n if min(a, b) <= v <= max(a, b))
        return (between - (n[a] + n[b]) / 2) ** 2

    rows = [(a, u, votes[u, a]) for u, a in np.argwhere(~np.isnan(votes))]
    theirs = agreement.AnnotationTask(data=rows, distance=distance).alpha()
    ours = krippendorff_alpha(table_votes(votes), level=level)
    assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_percent_and_each_against_the_others_by_a_loop(seed):
    votes = random_table(seed)
    rng = np.random.default_rng(0)
    found = measure_agreement(
        table_votes(votes), level="nominal", rng=rng, resamples=20
    )
    pairs = [
        (a, b, row[a] == row[b])
        for row in votes
        for a, b in itertools.combinations(np.flatnonzero(~np.isnan(row)), 2)
    ]
    assert found.percent.value == pytest.approx(np.mean([same for *_, same in pairs]))
    for who, one in enumerate(found.each):
        own = [same for a, b, same in pairs if who in (a, b)]
        assert one.value == pytest.approx(np.mean(own) if own else np.nan, nan_ok=True)


def test_alpha_that_is_not_defined():
    same = table_votes(np.ones((3, 2)))
    assert np.isnan(krippendorff_alpha(same, level="nominal"))
    found = measure_agreement(same, level="nominal", rng=np.random.default_rng(0))
    assert np.isnan(found.alpha.low) and found.percent == (1, 1, 1)
    with pytest.raises(ValueError, match="no unit has two votes"):
        krippendorff_alpha(table_votes(np.array([[1.0, np.nan]])), level="nominal")
    with pytest.raises(ValueError, match="level = 'ratio': expected nominal"):
        krippendorff_alpha(table_votes(BINARY), level="ratio")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3,\): expected a row a unit"):
        table_votes(np.ones(3))


def test_intervals_cover_what_is_true():
    """Of 120 crowds, about 95 % of the intervals hold the percentage that is true."""
    covered = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        agree = rng.random(60) < 0.7
        votes = table_votes(np.stack([np.ones(60), agree], axis=1))
        found = measure_agreement(votes, level="nominal", rng=rng, resamples=200)
        covered.append(found.percent.low <= 0.7 <= found.percent.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_intervals_are_over_items_not_pairs():
    """Copies of a unit within its item leave an interval as wide as it was."""
    rng = np.random.default_rng(3)
    units = table_votes((rng.random((40, 2)) < 0.6).astype(float))
    times = 6
    copies = Votes(
        np.concatenate([units.unit + 40 * k for k in range(times)]),
        np.tile(units.annotator, times),
        np.tile(units.value, times),
        item=np.tile(units.item, times),
    )
    apart = dataclasses.replace(copies, item=np.arange(40 * times))
    one, many, apart = (
        measure_agreement(v, level="nominal", rng=np.random.default_rng(0)).alpha
        for v in (units, copies, apart)
    )
    width = lambda found: found.high - found.low
    assert width(many) == pytest.approx(width(one), rel=0.05)
    assert width(apart) < 0.6 * width(one)


def test_the_same_draws_the_same_intervals():
    votes = table_votes(random_table(0))
    one, two = (
        measure_agreement(votes, level="ordinal", rng=np.random.default_rng(5))
        for _ in range(2)
    )
    assert one.alpha == two.alpha and one.percent == two.percent


@pytest.mark.parametrize("right, trials", [(0, 5), (3, 7), (40, 40), (61, 100)])
def test_wilson_as_scipy(right, trials):
    theirs = binomtest(right, trials).proportion_ci(method="wilson")
    found = wilson_interval(right / trials, trials)
    assert found[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def rankings(*ranks: tuple[int, ...], completions: str = "abcde") -> list[Ranking]:
    """One item, ranked by as many annotators."""
    texts = tuple(completions[: len(ranks[0])])
    return [Ranking("p", texts, r, annotator=n) for n, r in enumerate(ranks)]


def test_alpha_of_rankings_is_kendall_s_tau_b():
    """With as many ties on both sides; α has the factor (n − 1)/n of small samples."""
    one, two = (0, 1, 1, 2, 3), (1, 0, 2, 3, 3)
    judged = ranking_votes(rankings(one, two))
    n = len(judged.votes.value)
    found = krippendorff_alpha(judged.votes, level="ordinal")
    tau, _ = kendalltau(one, two)
    assert 1 - (1 - found) * n / (n - 1) == pytest.approx(tau)


def test_alpha_of_rankings_does_not_depend_on_how_they_are_written():
    first = rankings((0, 1, 2), (2, 0, 1), (0, 0, 1))
    again = [
        Ranking("p", r.completions[::-1], r.ranks[::-1], r.annotator) for r in first
    ]
    alphas = {
        round(krippendorff_alpha(ranking_votes(some).votes, level="ordinal"), 12)
        for some in (first, again, first[:1] + again[1:])
    }
    assert len(alphas) == 1
    strict = ranking_votes(rankings((0, 1, 2), (2, 0, 1))).votes
    nominal, ordinal = (
        krippendorff_alpha(strict, level=level) for level in ("nominal", "ordinal")
    )
    assert nominal == pytest.approx(ordinal)  # without ties
