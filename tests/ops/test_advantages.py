from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.masking import masked_whiten
from rlhf_jax.ops import (
    discounted_returns,
    gae_advantages,
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
    remax_advantages,
)

T = 8
gae = jax.jit(partial(gae_advantages, gamma=0.9))


def row(*values):
    return jnp.array([values], jnp.float32)


def test_by_hand():
    # γ = ½, λ = ½. δ₂ = 4 - 2 = 2; δ₁ = 0 + ½·2 - 1 = 0; δ₀ = 1 + ½·1 - 3 = -1.5.
    # Â₂ = 2; Â₁ = 0 + ¼·2 = ½; Â₀ = -1.5 + ¼·½ = -1.375.
    rewards, values = row(1, 0, 4), row(3, 1, 2)
    mask = jnp.full((1, 3), True)
    advantages, returns = gae_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-1.375, 0.5, 2.0]]
    assert returns.tolist() == [[1.625, 1.5, 4.0]]


def test_a_hole_takes_no_time():
    # The same three tokens, with padding on both sides and two masked ones inside.
    rewards, values = row(9, 1, 9, 9, 0, 4, 9), row(9, 3, 9, 9, 1, 2, 9)
    mask = jnp.array([[0, 1, 0, 0, 1, 1, 0]], bool)
    advantages, returns = gae_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0, -1.375, 0, 0, 0.5, 2.0, 0]]
    assert returns.tolist() == [[0, 1.625, 0, 0, 1.5, 4.0, 0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_0_is_the_one_step_error_and_lambda_1_the_return(gamma):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, T)), rng.normal(size=(2, T))
    mask = jnp.full((2, T), True)
    r, v = jnp.asarray(rewards, jnp.float32), jnp.asarray(values, jnp.float32)
    after = np.concatenate([values[:, 1:], np.zeros((2, 1))], axis=1)
    advantages, _ = gae_advantages(r, v, mask, gamma=gamma, lam=0.0)
    np.testing.assert_allclose(advantages, rewards + gamma * after - values, atol=1e-5)

    _, returns = gae_advantages(r, v, mask, gamma=gamma, lam=1.0)
    discounts = gamma ** np.arange(T)
    expected = [
        [sum(row[t:] * discounts[: T - t]) for t in range(T)] for row in rewards
    ]
    np.testing.assert_allclose(returns, expected, atol=1e-5)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(mask=st.lists(st.booleans(), min_size=T, max_size=T), seed=st.integers(0, 2**16))
def test_masked_tokens_can_be_cut_out(mask, seed):
    """A row with holes and padding = the row of its unmasked tokens, on their own."""
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 1, T)).astype(np.float32)
    mask = np.array([mask])
    got = gae(rewards, values, mask)
    # The unmasked tokens first and the rest masked: one shape, one compilation.
    order = np.argsort(~mask[0], kind="stable")
    packed = gae(*(a[:, order] for a in (rewards, values, mask)))
    for scattered, dense in zip(got, packed, strict=True):
        np.testing.assert_array_equal(np.asarray(scattered)[:, order], dense)


def test_shapes_and_masks_are_checked():
    with pytest.raises(AssertionError):
        gae_advantages(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.full((2, 3), True))
    with pytest.raises(AssertionError):
        gae_advantages(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3)))


def test_returns_by_hand():
    # γ = ½, a hole after the first token: 1 + ½·(0 + ½·4), 0 + ½·4, 4.
    mask = jnp.array([[0, 1, 0, 1, 1, 0]], bool)
    got = discounted_returns(row(9, 1, 9, 0, 4, 9), mask, gamma=0.5)
    assert got.tolist() == [[0, 2, 0, 2, 4, 0]]
    assert discounted_returns(row(9, 1, 9, 0, 4, 9), mask).tolist() == [
        [0, 5, 0, 4, 4, 0]
    ]


def test_remax_subtracts_in_float32():
    # 256 + 1 is 256 in bfloat16.
    scores = jnp.array([256, 3], jnp.bfloat16)
    assert remax_advantages(scores, jnp.array([255.0, 2.5])).tolist() == [1.0, 0.5]
    with pytest.raises(AssertionError):
        remax_advantages(scores, jnp.zeros(1))


def test_reinforce_plus_plus_with_a_baseline_is_a_composition():
    """Leads over the group, ±1 and ±2, at tokens; then whitened over all tokens."""
    scores = jnp.array([0.0, 2.0, 1.0, 5.0])
    mask = jnp.array([[1, 1], [1, 0], [1, 0], [1, 1]], bool)
    lead = group_advantages(scores, group_size=2, scale="none")
    got = masked_whiten(jnp.broadcast_to(lead[:, None], mask.shape), mask)
    # Of −1, −1, 1, −2, 2, 2: mean 1/6, mean of squares 15/6, variance 89/36.
    expected = (lead[:, None] - 1 / 6) / np.sqrt(89 / 36)
    np.testing.assert_allclose(got, np.where(mask, expected, 0), rtol=1e-6)


# Groups.

BOTH = {
    "std": partial(group_advantages, scale="std"),
    "none": partial(group_advantages, scale="none"),
    "batch": partial(group_advantages, scale="batch"),
    "loo": leave_one_out_advantages,
}
every_way = pytest.mark.parametrize("way", BOTH)


def loop(way: str, scores: np.ndarray, size: int) -> np.ndarray:
    """One score at a time, in float64, as TRL's GRPOTrainer and RLOOTrainer have it."""
    out = []
    for i, score in enumerate(scores):
        start = i - i % size
        group = [float(s) for s in scores[start : start + size]]
        others = [float(s) for j, s in enumerate(scores) if start <= j < start + size]
        others.pop(i % size)
        spread = {"std": group, "batch": [float(s) for s in scores]}.get(way)
        lead = score - sum(group) / size
        if way == "loo":
            lead = score - sum(others) / (size - 1)
        if spread is not None:
            mean = sum(spread) / len(spread)
            var = sum((s - mean) ** 2 for s in spread) / (len(spread) - 1)
            lead = lead / (var**0.5 + 1e-4)
        out.append(lead)
    return np.array(out)


def test_group_by_hand():
    # Groups (0, 2) and (1, 5): means 1 and 3, unbiased deviations √2 and √8; of all
    # four, mean 2 and Σ(s − 2)² = 4 + 0 + 1 + 9 = 14, so √(14/3).
    scores = jnp.array([0.0, 2.0, 1.0, 5.0])
    lead = np.array([-1.0, 1.0, -2.0, 2.0])
    by = lambda scale: group_advantages(scores, group_size=2, scale=scale)
    assert by("none").tolist() == lead.tolist()
    deviation = np.sqrt([2, 2, 8, 8]) + 1e-4
    np.testing.assert_allclose(by("std"), lead / deviation, rtol=1e-6)
    np.testing.assert_allclose(by("batch"), lead / (np.sqrt(14 / 3) + 1e-4), rtol=1e-6)
    assert leave_one_out_advantages(scores, group_size=2).tolist() == [-2, 2, -4, 4]


def test_leave_one_out_by_hand():
    # 1 − (2 + 6)/2, 2 − (1 + 6)/2, 6 − (1 + 2)/2.
    got = leave_one_out_advantages(jnp.array([1.0, 2.0, 6.0]), group_size=3)
    np.testing.assert_allclose(got, [-3, -1.5, 4.5], rtol=1e-6)


@every_way
@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_groups_equal_the_loop(way, size):
    for seed in range(3):
        scores = np.random.default_rng(seed).normal(3, 2, 12).astype(np.float32)
        got = BOTH[way](jnp.asarray(scores), group_size=size)
        np.testing.assert_allclose(got, loop(way, scores, size), rtol=2e-5, atol=2e-6)


@every_way
def test_group_gradient_equals_finite_differences_of_the_loop(way):
    scores = np.random.default_rng(1).normal(size=6).astype(np.float32)
    weights = np.cos(np.arange(6))
    total = lambda s: jnp.sum(BOTH[way](s, group_size=3) * jnp.asarray(weights))
    grads = jax.grad(total)(jnp.asarray(scores))
    scores = scores.astype(np.float64)
    for i in range(6):
        up, down = scores.copy(), scores.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        difference = (loop(way, up, 3) - loop(way, down, 3)) @ weights
        np.testing.assert_allclose(grads[i], difference / 2e-5, rtol=2e-5, atol=5e-6)


@pytest.mark.fault(16)
@every_way
@pytest.mark.parametrize("value", [0.1, -1e6, 3e30])
def test_a_group_of_equal_scores_has_no_advantage(way, value):
    # The mean of three times 0.1 is not 0.1 in float32, and 1e-8 / 1e-4 not nothing.
    advantages = partial(BOTH[way], group_size=3)
    equal = jnp.full(3, value)
    assert advantages(equal).tolist() == [0, 0, 0]
    assert np.isfinite(jax.grad(lambda s: advantages(s)[0])(equal)).all()
    one_of_two = advantages(jnp.concatenate([equal, jnp.arange(3.0)]))
    assert one_of_two[:3].tolist() == [0, 0, 0]


@every_way
def test_a_group_knows_nothing_of_the_others(way):
    scores = jnp.array([0.0, 2.0, 1.0, 5.0])
    moved = scores.at[2:].set(jnp.array([-7.0, 8.0]))
    ours, others = (BOTH[way](s, group_size=2) for s in (scores, moved))
    assert np.array_equal(ours[:2], others[:2]) == (way != "batch")


def test_informative_groups_are_those_with_an_advantage():
    scores = jnp.array([0.0, 0.0, 1.0, 0.0, 0.1, 0.1, 7.0, 7.0])
    got = informative_groups(scores, group_size=2)
    assert got.tolist() == [False, False, True, True, False, False, False, False]
    lead = group_advantages(scores, group_size=2)
    assert (lead != 0).tolist() == got.tolist()
    assert informative_groups(scores, group_size=4).tolist() == [True] * 8
    with pytest.raises(ValueError, match="group_size = 3 of 8 scores"):
        informative_groups(scores, group_size=3)


def test_groups_and_scales_are_checked():
    scale: Any = "group"
    with pytest.raises(ValueError, match="'group', expected std, none or batch"):
        group_advantages(jnp.zeros(4), group_size=2, scale=scale)
    for advantages in BOTH.values():
        for size in (1, 3):
            with pytest.raises(ValueError, match=f"group_size = {size} of 4 scores"):
                advantages(jnp.zeros(4), group_size=size)
        with pytest.raises(AssertionError):
            advantages(jnp.zeros((2, 2)), group_size=2)
