import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import ppo_loss

# Ratios 1.5, 1.5, 0.5, 0.5, 1 with advantages of both signs, ε = 0.2.
RATIO = jnp.array([[1.5, 1.5, 0.5, 0.5, 1.0]])
OLD = jnp.full((1, 5), -1.0)
LOGPROBS = OLD + jnp.log(RATIO)
ADVANTAGES = jnp.array([[2.0, -2.0, 2.0, -2.0, 3.0]])
MASK = jnp.full((1, 5), True)
# Clipped where the step has already gone far enough in the wanted direction.
TERMS = [[-2.4, 3.0, -1.0, 1.6, -3.0]]
CLIPPED = np.array([[True, False, False, True, False]])


def test_four_cases_by_hand():
    terms, metrics = ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK)
    np.testing.assert_allclose(terms, TERMS, rtol=1e-6)
    assert metrics.compute() == pytest.approx(
        {
            "policy/loss": np.mean(TERMS),
            "policy/approx_kl": (np.log(1.5) ** 2 + np.log(0.5) ** 2) / 5,
            "policy/clip_fraction": 2 / 5,
            "policy/clip_fraction_low": 1 / 5,
            "policy/clip_fraction_high": 1 / 5,
            "policy/clip_fraction_dual": 0.0,
            "policy/ratio": 1.0,
            "policy/ratio_max": 1.5,
        }
    )


def test_metrics_speak_of_unmasked_tokens():
    mask = jnp.array([[False, False, True, True, False]])
    _, metrics = ppo_loss(LOGPROBS, OLD, ADVANTAGES, mask)
    assert metrics.compute() == pytest.approx(
        {
            "policy/loss": 0.3,
            "policy/approx_kl": np.log(0.5) ** 2 / 2,
            "policy/clip_fraction": 0.5,
            "policy/clip_fraction_low": 0.5,
            "policy/clip_fraction_high": 0.0,
            "policy/clip_fraction_dual": 0.0,
            "policy/ratio": 0.5,
            "policy/ratio_max": 0.5,
        }
    )


def gradient(logprobs, **options):
    loss = lambda x: ppo_loss(x, OLD, ADVANTAGES, MASK, **options)[0].sum()
    return np.asarray(jax.grad(loss)(logprobs))


def test_no_gradient_where_clipped():
    grads = gradient(LOGPROBS)
    np.testing.assert_array_equal(grads[CLIPPED], 0.0)
    expected = np.asarray(-ADVANTAGES * RATIO)[~CLIPPED]
    np.testing.assert_allclose(grads[~CLIPPED], expected, rtol=1e-6)


def test_the_first_update_is_the_policy_gradient():
    """Before any update the two terms are equal: the gradient is -Â, not a half."""
    np.testing.assert_allclose(gradient(OLD), -ADVANTAGES, rtol=1e-6)
    metrics = ppo_loss(OLD, OLD, ADVANTAGES, MASK)[1].compute()
    assert metrics["policy/ratio"] == metrics["policy/ratio_max"] == 1.0
    assert metrics["policy/clip_fraction"] == metrics["policy/approx_kl"] == 0.0


def test_a_wide_clip_is_none():
    terms, metrics = ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, clip_eps=0.6)
    np.testing.assert_allclose(terms, -ADVANTAGES * RATIO, rtol=1e-6)
    assert metrics.compute()["policy/clip_fraction"] == 0.0


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        ppo_loss(LOGPROBS, OLD, ADVANTAGES[:, :1], MASK)
