"""Win rates, differences, pass@k and ratings: libraries, loops and optimisers."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu, norm, t

from rlhf_jax.evaluation import (
    bradley_terry,
    elo_ratings,
    length_controlled_win_rate,
    pass_at_k,
    reward_difference,
    reward_outcomes,
    share_interval,
    win_rate,
)
from rlhf_jax.feedback import wilson_interval
from rlhf_jax.ops import expected_best_of


def test_one_trial_a_group_is_wilson_s_interval_with_t():
    """var p = p(1−p)/(N−1): as many effective trials as degrees of freedom."""
    won = np.array([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    found = share_interval(won, np.ones(10))
    level = 1 - 2 * float(norm.sf(t.isf(0.025, 9)))  # whose z is that t
    wanted = wilson_interval(0.7, 9, confidence=level)
    np.testing.assert_allclose(found, wanted)


def test_shares_are_over_all_trials_and_never_without_width():
    found = share_interval(np.array([1.0, 5.0, 0.0]), np.array([1, 9, 0]))
    assert found.value == pytest.approx(0.6)
    always = share_interval(np.full(8, 3.0), np.full(8, 3))
    assert always.value == 1 == always.high and 0.5 < always.low < 0.9
    assert share_interval(np.array([1.0]), np.array([2])) == (0.5, 0, 1)
    assert np.isnan(share_interval(np.zeros(2), np.zeros(2))).all()
    with pytest.raises(ValueError, match="points"):
        share_interval(np.array([2.0]), np.array([1]))


def test_copies_of_a_comparison_make_nobody_surer():
    once = np.random.default_rng(0).integers(0, 3, size=(20, 1)) / 2
    found, copied = win_rate(once), win_rate(np.repeat(once, 7, axis=1))
    assert found.rate == copied.rate and copied.comparisons == 140
    assert found.wins + found.ties + found.losses == pytest.approx(1)
    assert found.ties == np.mean(once == 0.5)


def test_one_comparison_a_query_won_or_lost_is_wilson_s_interval():
    won = np.array([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1])[:, None]
    found = win_rate(won).rate
    np.testing.assert_allclose(found, wilson_interval(0.7, 10))
    # A tie, or two comparisons of a query, and the spread is an estimate.
    for other in (np.where(won, won, 0.5), np.repeat(won, 2, axis=1)):
        wider = win_rate(other).rate
        np.testing.assert_allclose(wider, share_interval(other.mean(1), np.ones(10)))


def test_queries_count_alike_and_what_is_masked_is_not_looked_at():
    outcomes = np.array([[1.0, np.nan, np.nan], [0.0, 0.0, 0.5], [np.nan] * 3])
    found = win_rate(outcomes, np.isfinite(outcomes))
    assert found.rate.value == pytest.approx((1 + 0.5 / 3) / 2)
    assert (found.queries, found.comparisons) == (2, 4)
    with pytest.raises(ValueError, match="query 0, response 1 is nan"):
        win_rate(outcomes)
    with pytest.raises(ValueError, match="from 0, lost, to 1"):
        win_rate(np.array([[1.5]]))


def test_outcomes_of_rewards_are_mann_and_whitney_s():
    rng = np.random.default_rng(0)
    first, second = rng.integers(5, size=(6, 4)), rng.integers(5, size=(6, 3))
    outcomes = reward_outcomes(first, second)
    for row, a, b in zip(outcomes, first, second, strict=True):
        assert row.sum() == mannwhitneyu(a, b, method="asymptotic").statistic
    turned = reward_outcomes(second, first)
    assert win_rate(turned).rate.value == pytest.approx(1 - win_rate(outcomes).rate[0])


def test_length_control_against_an_optimiser():
    rng = np.random.default_rng(0)
    longer = rng.normal(5, 10, size=(60, 3))
    mask = rng.random(longer.shape) < 0.8
    judged = expit(
        0.3 + np.tanh(longer / longer[mask].std()) + rng.normal(size=(60, 1))
    )
    weight = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)

    def loss(params):
        odds = params[0] + params[1] * np.tanh(longer / longer[mask].std())
        terms = -judged * np.log(expit(odds)) - (1 - judged) * np.log(expit(-odds))
        return np.sum(weight * terms) + params[1] ** 2 / 200

    best = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    spoilt = np.where(mask, judged, np.nan)
    found = length_controlled_win_rate(spoilt, longer, mask)
    assert found.rate.value == pytest.approx(expit(best[0]), abs=1e-6)
    assert found.length_coef == pytest.approx(best[1], abs=1e-5)
    assert found.rate.low < found.rate.value < found.rate.high


def test_length_control_takes_back_what_length_won():
    """A judge of length alone, and a policy that is longer on average."""
    rng = np.random.default_rng(0)
    longer = 0.5 + rng.normal(size=(2000, 1))
    won = (rng.random(longer.shape) < expit(3 * np.tanh(longer))).astype(float)
    assert win_rate(won).rate.low > 0.6
    found = length_controlled_win_rate(won, longer).rate
    assert found.low < 0.5 < found.high
    # Nothing to control, or nothing to fit: the plain rate.
    plain = win_rate(won).rate
    assert length_controlled_win_rate(won, 0 * longer).rate == plain
    ones = np.ones((5, 1))
    found = length_controlled_win_rate(ones, longer[:5])
    assert found == (share_interval(ones[:, 0], np.ones(5)), 0.0)
    assert found.rate.low < win_rate(ones).rate.low
    # Length decides every outcome: φ is held by its prior.
    sorted_out = (longer > 0).astype(float)
    found = length_controlled_win_rate(sorted_out, longer)
    assert np.isfinite(found.rate).all() and 3 < found.length_coef < 100


def test_differences_are_paired():
    """What queries have in common cancels; unpaired, the error would be √(200/30)."""
    rng = np.random.default_rng(0)
    query = 10 * rng.normal(size=(30, 1))
    first = query + 0.5 + 0.1 * rng.normal(size=(30, 4))
    second = query + 0.1 * rng.normal(size=(30, 2))
    found = reward_difference(first, second, rng=rng)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.low < 0.5 < found.high and found.high - found.low < 0.15
    same = reward_difference(query + 1, query, rng=rng)
    np.testing.assert_allclose(same, 1)


def test_pass_at_k_by_hand_and_by_all_subsets():
    rng = np.random.default_rng(0)
    right = rng.random((6, 7)) < [[0.0], [0.1], [0.3], [0.5], [0.8], [1.0]]
    for k in (1, 3, 7):
        found = pass_at_k(right.sum(axis=1), 7, k)
        for row, p in zip(right, found, strict=True):
            subsets = [any(s) for s in itertools.combinations(row, k)]
            assert p == pytest.approx(np.mean(subsets), abs=1e-12)
        best = expected_best_of(jnp.asarray(right.ravel(), float), group_size=7, k=k)
        np.testing.assert_allclose(found, best, rtol=1e-6)
    assert pass_at_k([1, 1], [2, 4], 2).tolist() == [1, pytest.approx(0.5)]
    for c, n, k in ((3, 2, 1), (1, 2, 3), (1, 2, 0)):
        with pytest.raises(ValueError, match="correct|k ="):
            pass_at_k([c], [n], k)


def test_strengths_against_an_optimiser():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 4, size=(25, 4, 4)) / 2
    points *= ~np.eye(4, dtype=bool)
    found = bradley_terry(points, prior_ties=0.0)
    won = points.sum(axis=0)

    def loss(theta):
        odds = theta[:, None] - theta[None, :]
        return -np.sum(won * np.log(expit(odds))) + np.sum(theta) ** 2

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-10}).x
    np.testing.assert_allclose(found.strengths, best - best.mean(), atol=1e-6)
    np.testing.assert_allclose(found.win_probability().sum(), 8)  # p + (1 − p), halves


def test_ratings_vary_as_their_covariance_says():
    """The same tournament 400 times: responses that meet two others, three a query."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        rewards = np.array([[0.5], [0.0], [-0.5]]) + rng.gumbel(size=(40, 3, 3))
        points = (rewards[:, :, None] > rewards[:, None, :]).sum(axis=-1)
        drawn.append(bradley_terry(points, prior_ties=0.0))
    seen = np.cov(np.array([r.strengths for r in drawn]).T)
    said = np.mean([r.covariance for r in drawn], axis=0)
    np.testing.assert_allclose(np.diag(said), np.diag(seen), rtol=0.2)
    mean = np.mean([r.strengths for r in drawn], axis=0)
    np.testing.assert_allclose(mean, [0.5, 0.0, -0.5], atol=0.02)


def test_who_always_wins_needs_a_prior():
    points = np.zeros((5, 3, 3))
    points[:, 0, 1] = points[:, 1, 2] = points[:, 2, 1] = 1
    with pytest.raises(ValueError, match="policy 1 and those .* from policy 0"):
        bradley_terry(points, prior_ties=0.0)
    best, *others = elo_ratings(bradley_terry(points))
    assert np.isfinite(best).all() and best.value > max(o.value for o in others)
    assert np.mean([best.value, *(o.value for o in others)]) == pytest.approx(1000)
    assert math.isnan(elo_ratings(bradley_terry(points[:1]))[0].low)
    with pytest.raises(ValueError, match="expected .N, M, M."):
        bradley_terry(points[0])
