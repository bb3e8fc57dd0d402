from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import adaptive_kl_update, kl_estimate, kl_penalized_rewards


@pytest.mark.parametrize(
    "kind, expected",
    [
        # log π/π_ref = log 2, then -log 4: π_ref/π = 1/2, then 4.
        ("k1", [np.log(2), -np.log(4)]),
        ("k2", [np.log(2) ** 2 / 2, np.log(4) ** 2 / 2]),
        ("k3", [1 / 2 - 1 + np.log(2), 4 - 1 - np.log(4)]),
    ],
)
def test_by_hand(kind, expected):
    logprobs, ref = jnp.log(jnp.array([[0.5, 0.1]])), jnp.log(jnp.array([[0.25, 0.4]]))
    got = kl_estimate(logprobs, ref, kind=kind)
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_k1_and_k3_are_unbiased_and_k2_has_the_gradient():
    """Expectations over π, written out: Σ π(x)·estimate(x) = KL(π ‖ π_ref)."""
    logits, ref = jnp.array([0.5, -1.0, 0.2, 1.5]), jax.nn.log_softmax(jnp.arange(4.0))

    def kl(logits):
        logprobs = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logprobs) * (logprobs - ref))

    logprobs = jax.nn.log_softmax(logits)
    for kind in ("k1", "k3"):
        estimate = kl_estimate(logprobs[None], ref[None], kind=kind)[0]
        mean = jnp.sum(jnp.exp(logprobs) * estimate)
        np.testing.assert_allclose(mean, kl(logits), rtol=1e-6)

    def k2_of_samples(logits):  # the samples are drawn from π, which stays as it is
        estimate = kl_estimate(jax.nn.log_softmax(logits)[None], ref[None], kind="k2")
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logprobs)) * estimate[0])

    np.testing.assert_allclose(
        jax.grad(k2_of_samples)(logits), jax.grad(kl)(logits), rtol=1e-5
    )


def test_what_the_estimates_are_as_losses():
    """Mean gradients by the logits: nothing, KL(π ‖ π_ref) and KL(π_ref ‖ π)."""
    logits = jnp.array([0.5, -1.0, 0.2, 1.5])
    ref = jax.nn.log_softmax(jnp.arange(4.0))
    drawn = jax.nn.softmax(logits)

    def loss(logits, kind):
        logprobs = jax.nn.log_softmax(logits)
        return jnp.sum(drawn * kl_estimate(logprobs[None], ref[None], kind=kind)[0])

    def kl(p, q):
        return jnp.sum(jnp.exp(p) * (p - q))

    reverse = jax.grad(lambda z: kl(jax.nn.log_softmax(z), ref))(logits)
    forward = jax.grad(lambda z: kl(ref, jax.nn.log_softmax(z)))(logits)
    assert np.abs(reverse - forward).max() > 0.1
    for kind, expected in [("k1", 0 * reverse), ("k2", reverse), ("k3", forward)]:
        got = jax.grad(loss)(logits, kind)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_k3_keeps_its_precision_for_close_policies():
    # d = 1e-3: d²/2 + d³/6 = 5.0017e-7, which eᵈ - 1 - d in float32 misses by 10 %.
    got = kl_estimate(jnp.array([[0.0]]), jnp.array([[1e-3]]), kind="k3")
    np.testing.assert_allclose(got, [[5.00167e-7]], rtol=1e-3)


def test_unknown_kind():
    kind: Any = "k4"
    with pytest.raises(ValueError, match="'k4', expected k1, k2 or k3"):
        kl_estimate(jnp.zeros((1, 1)), jnp.zeros((1, 1)), kind=kind)


# Rewards.


def test_score_sits_on_the_last_unmasked_token():
    logprobs = jnp.array([[-1.0, -2.0, -3.0, -4.0]] * 3)
    ref = jnp.array([[-2.0, -4.0, -2.0, -4.0]] * 3)  # k1 = 1, 2, -1, 0
    mask = jnp.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    scores = jnp.array([0.7, -0.4, 5.0])
    got = kl_penalized_rewards(scores, logprobs, ref, mask, kl_coef=0.5)
    np.testing.assert_allclose(
        got, [[0, -1, 0, 0.7], [-0.5, -1.4, 0, 0], [0, 0, 0, 0]], rtol=1e-6
    )


def test_scores_survive_bfloat16_logprobs():
    zeros = jnp.zeros((1, 2), jnp.bfloat16)
    mask = jnp.array([[True, True]])
    got = kl_penalized_rewards(jnp.array([0.7]), zeros, zeros, mask, kl_coef=1)
    np.testing.assert_allclose(got, [[0.0, 0.7]], rtol=1e-6)


def test_kl_coef_may_be_traced_and_reaches_every_kind():
    logprobs, ref = jnp.array([[-1.0]]), jnp.array([[-5.0]])
    mask, scores = jnp.array([[True]]), jnp.zeros(1)

    @jax.jit
    def slope(kl_coef, logprobs):
        rewards = lambda c: kl_penalized_rewards(
            scores, logprobs, ref, mask, kl_coef=c, kind="k2"
        )[0, 0]
        return jax.grad(rewards)(kl_coef)

    assert slope(0.3, logprobs) == -8.0  # -k2 = -(4 nats)²/2


# The coefficient.


@pytest.mark.parametrize(
    "observed, multiplier",
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 500 / 10_000),
        (60.0, 1 + 0.2 * 500 / 10_000),
        (0.0, 1 - 0.2 * 500 / 10_000),
    ],
)
def test_coefficient_follows_the_clipped_error(observed, multiplier):
    got = adaptive_kl_update(0.15, observed, target=6, horizon=10_000, num_episodes=500)
    np.testing.assert_allclose(got, 0.15 * multiplier, rtol=1e-6)
    assert got.dtype == jnp.float32
