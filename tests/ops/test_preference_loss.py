"""Numbers derived by hand; oracle, gradients and laws are in test_laws.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import (
    implicit_reward,
    pairwise_reward_loss,
    preference_loss,
    reference_free_loss,
)


def logps(*values):
    return jnp.array(values, jnp.float32)


def examples(seed):
    four = np.random.default_rng(seed).normal(-2, 1, (4, 6)).astype(np.float32)
    return tuple(map(jnp.asarray, four))


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


# u₊ = log 3 and u₋ = −log 3: with β = 1, σ(u₊) = 3/4, σ(u₋) = 1/4, σ(Δ) = 9/10.
@pytest.mark.parametrize(
    "kind, options, expected",
    [
        ("hinge", {"beta": 0.5 / np.log(9)}, 1 / 2),
        ("hinge", {"beta": 1.0}, 0.0),
        (
            "robust",
            {"label_smoothing": 0.2},
            (-0.8 * np.log(0.9) + 0.2 * np.log(0.1)) / 0.6,
        ),
        ("robust", {}, -np.log(0.9)),
        # The policy's own odds are those of the smoothed label: nothing to learn.
        ("exo", {"label_smoothing": 0.1}, 0.0),
        (
            "exo",
            {"label_smoothing": 0.2},
            0.9 * np.log(0.9 / 0.8) + 0.1 * np.log(0.1 / 0.2),
        ),
        ("exo", {}, 0.9 * np.log(0.9 / 0.999) + 0.1 * np.log(0.1 / 0.001)),
        # m = 9/10 and e^(−Δ) = 1/9; τ is 1/20 if not given: m = 9²⁰/(9²⁰ + 1), 1.
        ("discopop", {"tau": 1.0}, -0.1 * np.log(0.9) + 0.9 / 9),
        ("discopop", {}, 1 / 9),
        ("nca", {}, -np.log(3 / 4) - np.log(1 / 4) / 2 - np.log(3 / 4) / 2),
        ("sppo", {"beta": 0.5}, 2 * (np.log(3) - 1) ** 2),
        ("apo_zero", {}, 1 / 4 + 1 / 4),
        ("apo_down", {}, 3 / 4 + 1 / 10),
    ],
)
def test_kinds_by_hand(kind, options: dict[str, Any], expected):
    up, zero = logps(np.log(3)), logps(0)
    options = {"beta": 1.0} | options
    loss = preference_loss(zero, -up, -up, zero, kind=kind, **options)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-7)


# Ratios 3 and 1/3; the loss (lead − 1)² shows the lead.
@pytest.mark.parametrize(
    "divergence, options, lead",
    [
        ("reverse_kl", {}, np.log(9)),
        ("forward_kl", {}, -1 / 3 + 3),
        ("js", {}, np.log(2 * 3 / 4) - np.log((2 / 3) / (4 / 3))),
        ("alpha", {}, 2 * (1 - 3**-0.5) - 2 * (1 - 3**0.5)),
        ("alpha", {"alpha": 0.25}, 4 * (1 - 3**-0.25) - 4 * (1 - 3**0.25)),
    ],
)
def test_divergences_by_hand(divergence, options: dict[str, Any], lead):
    up, zero = logps(np.log(3)), logps(0)
    options |= {"kind": "ipo", "beta": 0.5, "divergence": divergence}
    loss = preference_loss(zero, -up, -up, zero, **options)
    np.testing.assert_allclose(loss, [(lead - 1) ** 2], rtol=1e-5)


def test_alpha_is_between_the_two_kl_divergences():
    loss = lambda *ends, **options: preference_loss(*examples(3), **options)
    near = [loss(divergence="alpha", alpha=a) for a in (1e-4, 1 - 1e-6)]
    for got, divergence in zip(near, ("reverse_kl", "forward_kl"), strict=True):
        np.testing.assert_allclose(got, loss(divergence=divergence), rtol=2e-3)
    assert np.abs(near[0] - near[1]).max() > 0.01


def test_aot_compares_equal_ranks_by_hand():
    # m = (3, 1, 2) and m′ = (10, 30, 20): the least m, of the second pair, meets 10,
    # the next, of the third, 20, and the first pair meets 30.
    zero = logps(0, 0, 0)
    loss = preference_loss(logps(3, 1, 2), zero, logps(10, 30, 20), zero, kind="aot")
    expected = np.log1p(np.exp(-0.1 * np.array([3.0 - 30, 1 - 10, 2 - 20])))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_unpaired_aot_compares_equal_ranks_by_hand():
    # u₊ = (3, 1, 2), u₋ = (−10, −30, −20): 1 meets −30, 2 meets −20, 3 meets −10.
    zero = logps(0, 0, 0)
    four = logps(3, 1, 2), logps(-10, -30, -20), zero, zero
    loss = preference_loss(*four, kind="aot_unpaired")
    expected = np.log1p(np.exp(-0.1 * np.array([3.0 + 10, 1 + 30, 2 + 20])))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired"])
def test_absent_pairs_have_no_rank(kind):
    # Left out by the mask or not there at all, wherever they stand and whatever they
    # hold; and the rows do depend on one another.
    four = examples(4)
    mask = jnp.array([True, False, True, True, False, True])
    masked = preference_loss(*four, kind=kind, mask=mask)
    without = preference_loss(*(x[mask] for x in four), kind=kind)
    np.testing.assert_allclose(masked[mask], without, rtol=1e-6)
    assert masked[~mask].tolist() == [0, 0]
    assert np.abs(masked - preference_loss(*four, kind=kind))[mask].max() > 1e-3


def test_dpo_is_bradley_terry_of_the_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = examples(2)
    expected = pairwise_reward_loss(
        implicit_reward(chosen, ref_chosen, beta=0.3),
        implicit_reward(rejected, ref_rejected, beta=0.3),
    )
    got = preference_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_robust_loss_of_flipped_labels_is_dpo_of_the_true_ones_in_expectation():
    chosen, rejected, ref_chosen, ref_rejected = examples(5)
    loss = lambda a, b, c, d: preference_loss(
        a, b, c, d, kind="robust", label_smoothing=0.3
    )
    right = loss(chosen, rejected, ref_chosen, ref_rejected)
    flipped = loss(rejected, chosen, ref_rejected, ref_chosen)
    expected = preference_loss(chosen, rejected, ref_chosen, ref_rejected)
    np.testing.assert_allclose(0.7 * right + 0.3 * flipped, expected, rtol=1e-5)


# cDPO and EXO: σ(βΔ) = 1 − ε = 4/5; IPO: Δ = 1/(2β). Beyond it the gradient turns.
@pytest.mark.parametrize(
    "options, delta",
    [
        ({"label_smoothing": 0.2}, np.log(4) / 0.7),
        ({"kind": "exo", "label_smoothing": 0.2}, np.log(4) / 0.7),
        ({"kind": "ipo"}, 0.5 / 0.7),
    ],
)
def test_smoothed_and_squared_losses_have_a_best_lead(options, delta):
    zero = logps(0)
    loss = lambda c: preference_loss(c, zero, zero, zero, beta=0.7, **options)[0]
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
    "options",
    [
        {"kind": "exo"},
        {"kind": "discopop"},
        {"divergence": "forward_kl"},
        {"divergence": "alpha"},
        {"kind": "nca"},
    ],
)
def test_no_lead_is_too_large(options):
    # Also where both completions are far from what the reference would say.
    zero = logps(0, 0, 0, 0)
    four = logps(-900, 900, -900, 900), logps(900, -900, -901, 901), zero, zero
    loss = lambda *four: preference_loss(*four, **options)
    total = lambda *four: loss(*four).sum()
    assert np.isfinite(loss(*four)).all()
    assert np.isfinite(jax.grad(total, argnums=(0, 1))(*four)).all()


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"kind": "sigmoid"}, "kind = 'sigmoid', expected one of dpo, ipo, hinge"),
        ({"kind": "simpo"}, "kind = 'simpo', expected one of dpo, ipo, hinge"),
        ({"beta": 0.0}, "beta = 0.0, expected more than 0"),
        ({"beta": float("nan")}, "beta = nan, expected more than 0"),
        ({"label_smoothing": 0.5}, "label_smoothing = 0.5, expected"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1, expected"),
        ({"kind": "exo", "label_smoothing": 0.0}, "label_smoothing = 0 for exo, exp"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "for dpo, robust.*, not for ipo"),
        ({"tau": 0.05}, "tau = 0.05: it is for discopop, not for dpo"),
        ({"kind": "discopop", "tau": 0.0}, "tau = 0.0, expected more than 0"),
        ({"divergence": "hellinger"}, "divergence = 'hellinger', expected one of rev"),
        ({"kind": "nca", "divergence": "js"}, "divergence = 'js': .*, not for nca"),
        ({"divergence": "js", "alpha": 0.5}, "for divergence = 'alpha', not for js"),
        ({"divergence": "alpha", "alpha": 1.0}, "alpha = 1.0, expected more than 0"),
        ({"kind": "sppo", "alpha": 0.5}, "alpha = 0.5: it is for .*, not for sppo"),
    ],
)
def test_options_are_checked(options: dict[str, Any], wrong):
    with pytest.raises(ValueError, match=f"^preference_loss: .*{wrong}"):
        preference_loss(*[logps(0)] * 4, **options)


@pytest.mark.parametrize("kind", ["ipo", "hinge", "nca", "aot"])
def test_no_smoothing_is_no_option(kind):
    four = examples(6)
    plain = preference_loss(*four, kind=kind)
    zero = preference_loss(*four, kind=kind, label_smoothing=0.0)
    np.testing.assert_array_equal(plain, zero)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        preference_loss(logps(0, 0), logps(0), logps(0, 0), logps(0))
    with pytest.raises(AssertionError):
        preference_loss(logps(0), logps(0), logps(0, 0), logps(0))
    with pytest.raises(AssertionError):
        preference_loss(*[jnp.zeros((2, 1))] * 4)
    with pytest.raises(AssertionError):
        preference_loss(*[logps(0)] * 4, mask=jnp.array([True, True]))


# Means a token log ½ and log ¼: odds of 1 and ⅓.
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"kind": "simpo", "beta": 2.0, "gamma": np.log(4)}, np.log(2)),
        ({"kind": "simpo", "beta": 1.0}, -np.log(2 / (2 + np.exp(0.5)))),
        ({"kind": "cpo", "beta": 1.0}, -np.log(2 / 3)),
        ({"kind": "cpo_hinge", "beta": 1.0}, 1 - np.log(2)),
        ({"kind": "cpo_hinge", "beta": 2.0}, 0.0),
        ({"kind": "orpo", "beta": 0.1}, -0.1 * np.log(3 / 4)),
    ],
)
def test_reference_free_losses_by_hand(options, expected):
    half, quarter = logps(np.log(1 / 2)), logps(np.log(1 / 4))
    loss = reference_free_loss(half, quarter, **options)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-7)


def test_certain_completions_have_finite_odds():
    zero, low = logps(0, -500, 0), logps(-500, 0, 0)
    loss = lambda *pair: reference_free_loss(*pair, kind="orpo", beta=1.0)
    slopes = jax.grad(lambda *pair: loss(*pair).sum(), argnums=(0, 1))(zero, low)
    assert np.isfinite(loss(zero, low)).all() and np.isfinite(slopes).all()


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"kind": "dpo"}, "kind = 'dpo', expected one of simpo, cpo"),
        ({"beta": -1.0}, "beta = -1.0, expected more than 0"),
        ({"kind": "cpo", "gamma": 0.5}, "gamma = 0.5: it is for simpo, not for cpo"),
        ({"gamma": -0.5}, "gamma = -0.5, expected 0 or more"),
    ],
)
def test_reference_free_options_are_checked(options: dict[str, Any], wrong):
    options = {"kind": "simpo", "beta": 2.0} | options
    with pytest.raises(ValueError, match=f"^reference_free_loss: .*{wrong}"):
        reference_free_loss(logps(-1), logps(-2), **options)
