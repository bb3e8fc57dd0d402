from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import best_of_n, best_of_n_kl, expected_best_of, overlong_penalty


def test_rows_of_the_best():
    scores = jnp.array([-3.0, -1.0, -2.0, 5.0, 4.0, 5.0])
    rows = best_of_n(scores, group_size=3)
    assert rows.tolist() == [1, 3]
    assert rows.dtype == jnp.int32
    assert best_of_n(scores, group_size=1).tolist() == list(range(6))


def test_the_bound_is_the_kl_of_best_of_n_over_many_responses():
    # Over m equally likely responses of different scores: P(best is the i-th) =
    # (i/m)ⁿ − ((i−1)/m)ⁿ, and the bound is what m → ∞ comes to.
    for n in (1, 2, 4, 16):
        edges = (np.arange(100_001) / 100_000) ** n
        p = np.diff(edges)
        kl = np.sum(p * np.log(np.maximum(p, 1e-300) * 100_000))
        np.testing.assert_allclose(best_of_n_kl(n), kl, rtol=1e-3, atol=1e-6)
        assert kl <= best_of_n_kl(n) + 1e-6


def test_the_bound_is_one_for_responses_that_score_the_same():
    # Two responses, a coin each, scores 0 and 1: best-of-2 is 1 with probability ¾.
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert kl < best_of_n_kl(2) - 0.05


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_all_subsets(k):
    scores = np.random.default_rng(0).integers(0, 5, 10).astype(np.float32)
    expected = [
        np.mean([max(some) for some in combinations(group, k)])
        for group in scores.reshape(2, 5)
    ]
    got = expected_best_of(jnp.asarray(scores), group_size=5, k=k)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_expected_best_of_right_and_wrong_is_pass_at_k():
    # 2 of 4 are right; of the 6 pairs, one has none of them.
    scores = jnp.array([0.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(expected_best_of(scores, group_size=4, k=2), [5 / 6])


def test_gold_of_the_best_by_score():
    # Pairs of 3: the chosen are 2, 2 and 1, by scores that rise and a truth that falls.
    scores, gold = jnp.array([0.0, 1.0, 2.0]), jnp.array([5.0, 3.0, -1.0])
    best = lambda k: expected_best_of(scores, group_size=3, k=k, gold=gold)
    np.testing.assert_allclose(best(1), [7 / 3], rtol=1e-6)
    np.testing.assert_allclose(best(2), [1 / 3], rtol=1e-6)
    np.testing.assert_allclose(best(3), [-1], rtol=1e-6)


def test_groups_are_checked():
    with pytest.raises(ValueError, match="group_size = 3 of 4 scores"):
        best_of_n(jnp.zeros(4), group_size=3)
    with pytest.raises(ValueError, match="group_size = 0 of 4 scores"):
        best_of_n(jnp.zeros(4), group_size=0)
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k = {k}, expected 1 to 2"):
            expected_best_of(jnp.zeros(4), group_size=2, k=k)


def test_overlong_penalty_is_a_ramp():
    lengths = jnp.array([1, 80, 81, 90, 100, 101])
    got = overlong_penalty(lengths, budget=100, buffer=20)
    np.testing.assert_allclose(got, [0, 0, -0.05, -0.5, -1, -1], rtol=1e-6)
    for buffer in (0, 101):
        with pytest.raises(ValueError, match=f"buffer = {buffer}, expected 1 to 100"):
            overlong_penalty(lengths, budget=100, buffer=buffer)
