from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import implicit_reward, pairwise_reward_loss, preference_loss

KINDS: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo"},
    "cdpo": {"kind": "dpo", "label_smoothing": 0.2},
    "ipo": {"kind": "ipo"},
}
every_kind = pytest.mark.parametrize("name", KINDS)


def logps(*values):
    return jnp.array(values, jnp.float32)


def loop(name, chosen, rejected, ref_chosen, ref_rejected, beta=0.7):
    """One pair at a time, in float64, as the branches of TRL's DPOTrainer have it."""
    out = []
    for c, r, rc, rr in zip(chosen, rejected, ref_chosen, ref_rejected, strict=True):
        delta = (c - rc) - (r - rr)
        win = 1 / (1 + np.exp(-beta * delta))
        smoothing = 0.2 if name == "cdpo" else 0.0
        loss = -(1 - smoothing) * np.log(win) - smoothing * np.log(1 - win)
        out.append((delta - 1 / (2 * beta)) ** 2 if name == "ipo" else loss)
    return np.array(out)


def examples(seed):
    """Exactly representable in float32, so that the loop sees the same numbers."""
    four = np.random.default_rng(seed).normal(-2, 1, (4, 6)).astype(np.float32)
    return tuple(four.astype(np.float64))


def test_dpo_by_hand():
    # Δ = (−1 + 3) − (−2 + 1) = 3, β = log(3)/3: odds of 3, won with probability 3/4.
    four = logps(-1), logps(-2), logps(-3), logps(-1)
    beta = np.log(3) / 3
    dpo = preference_loss(*four, beta=beta)
    np.testing.assert_allclose(dpo, [-np.log(3 / 4)], rtol=1e-6)
    cdpo = preference_loss(*four, beta=beta, label_smoothing=0.1)
    expected = -0.9 * np.log(3 / 4) - 0.1 * np.log(1 / 4)
    np.testing.assert_allclose(cdpo, [expected], rtol=1e-6)


def test_ipo_by_hand():
    # Δ = 3 and 1/(2β) = 5: (3 − 5)².
    four = logps(-1), logps(-2), logps(-3), logps(-1)
    loss = preference_loss(*four, kind="ipo", beta=0.1)
    np.testing.assert_allclose(loss, [4.0], rtol=1e-6)


@every_kind
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop(name, seed):
    four = examples(seed)
    got = preference_loss(*map(jnp.float32, four), beta=0.7, **KINDS[name])
    np.testing.assert_allclose(got, loop(name, *four), rtol=2e-5, atol=2e-6)


@every_kind
def test_gradient_equals_finite_differences_of_the_loop(name):
    four = examples(1)
    weights = np.cos(np.arange(6))
    op = partial(preference_loss, beta=0.7, **KINDS[name])
    total = lambda *four: jnp.sum(op(*four) * jnp.float32(weights))
    grads = jax.grad(total, argnums=(0, 1, 2, 3))(*map(jnp.float32, four))
    for argnum, grad in enumerate(grads):
        for i in range(6):
            sides = []
            for h in (1e-5, -1e-5):
                moved = [a.copy() for a in four]
                moved[argnum][i] += h
                sides.append(loop(name, *moved) @ weights)
            numeric = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose(grad[i], numeric, rtol=2e-5, atol=5e-6)


def test_dpo_is_bradley_terry_of_the_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = map(jnp.float32, examples(2))
    expected = pairwise_reward_loss(
        implicit_reward(chosen, ref_chosen, beta=0.3),
        implicit_reward(rejected, ref_rejected, beta=0.3),
    )
    got = preference_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("name, delta", [("cdpo", np.log(4) / 0.7), ("ipo", 0.5 / 0.7)])
def test_the_smoothed_and_the_squared_loss_have_a_best_lead(name, delta):
    # cDPO: σ(βΔ) = 1 − ε = 4/5; IPO: Δ = 1/(2β). Beyond it the gradient turns round.
    zero = logps(0)
    loss = lambda c: preference_loss(c, zero, zero, zero, beta=0.7, **KINDS[name])[0]
    slope = jax.grad(loss)
    np.testing.assert_allclose(slope(logps(delta)), [0.0], atol=1e-6)
    assert slope(logps(delta - 0.1))[0] < 0 < slope(logps(delta + 0.1))[0]


def test_pairs_far_apart_are_stable():
    zero = logps(0, 0)
    loss = lambda c: preference_loss(c, zero, zero, zero, beta=1.0)
    chosen = logps(-1e4, 1e4)
    assert loss(chosen).tolist() == [1e4, 0.0]
    assert jax.grad(lambda c: loss(c).sum())(chosen).tolist() == [-1.0, 0.0]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"kind": "sigmoid"}, "kind = 'sigmoid', expected dpo or ipo"),
        ({"beta": 0.0}, "beta = 0.0, expected more than 0"),
        ({"beta": float("nan")}, "beta = nan, expected more than 0"),
        ({"label_smoothing": 0.5}, "label_smoothing = 0.5, expected"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1, expected"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "for dpo, not for ipo"),
    ],
)
def test_options_are_checked(options: dict[str, Any], complaint):
    with pytest.raises(ValueError, match=complaint):
        preference_loss(*[logps(0)] * 4, **options)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        preference_loss(logps(0, 0), logps(0), logps(0, 0), logps(0))
    with pytest.raises(AssertionError):
        preference_loss(logps(0), logps(0), logps(0, 0), logps(0))
    with pytest.raises(AssertionError):
        preference_loss(*[jnp.zeros((2, 1))] * 4)
