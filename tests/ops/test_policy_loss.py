import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import (
    cispo_loss,
    gspo_loss,
    loss_weights,
    policy_gradient_loss,
    ppo_loss,
)

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


def test_a_higher_upper_bound_lets_likelier_tokens_grow():
    terms, metrics = ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, clip_eps_high=0.28)
    np.testing.assert_allclose(terms, [[-2.56, 3.0, -1.0, 1.6, -3.0]], rtol=1e-6)
    terms, metrics = ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, clip_eps_high=0.6)
    np.testing.assert_allclose(terms, [[-3.0, 3.0, -1.0, 1.6, -3.0]], rtol=1e-6)
    shares = metrics.compute()
    assert shares["policy/clip_fraction_high"] == 0.0
    assert shares["policy/clip_fraction_low"] == pytest.approx(1 / 5)
    assert shares["policy/clip_fraction"] == pytest.approx(1 / 5)


def test_the_dual_clip_bounds_what_a_bad_token_costs():
    # −Âr = 3 for Â = −2 and r = 1.5; at most 1.25 · 2. Positive advantages keep theirs.
    terms, metrics = ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, dual_clip=1.25)
    np.testing.assert_allclose(terms, [[-2.4, 2.5, -1.0, 1.6, -3.0]], rtol=1e-6)
    shares = metrics.compute()
    assert shares["policy/clip_fraction_dual"] == pytest.approx(1 / 5)
    assert shares["policy/clip_fraction"] == pytest.approx(2 / 5)
    assert gradient(LOGPROBS, dual_clip=1.25)[0, 1] == 0.0 < gradient(LOGPROBS)[0, 1]


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, float("nan")])
def test_the_dual_clip_is_checked(dual_clip):
    with pytest.raises(ValueError, match=f"dual_clip = {dual_clip}, expected more"):
        ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, dual_clip=dual_clip)


def test_shapes_are_checked():
    for loss in (ppo_loss, gspo_loss, cispo_loss):
        with pytest.raises(AssertionError):
            loss(LOGPROBS, OLD, ADVANTAGES[:, :1], MASK)
        with pytest.raises(AssertionError):
            loss(LOGPROBS, OLD, ADVANTAGES, MASK.astype(jnp.float32))


# The other surrogates.


def test_all_surrogates_have_one_gradient_where_the_policy_has_just_sampled():
    """−Â at every token, but for GSPO's, which is that of the sequence's mean."""
    advantages = jnp.full((1, 5), -2.0)
    losses = {
        "ppo": ppo_loss,
        "cispo": cispo_loss,
        "gspo": gspo_loss,
        "reinforce": lambda logprobs, old, *rest: policy_gradient_loss(logprobs, *rest),
    }
    for name, loss in losses.items():
        total = lambda x, loss=loss: jnp.sum(loss(x, OLD, advantages, MASK)[0])
        np.testing.assert_allclose(
            jax.grad(total)(OLD), -advantages, rtol=1e-6, err_msg=name
        )


def test_gspo_by_hand():
    # Responses of 2 and 3 tokens: √(1.5 · 1.5) = 1.5 and (½ · ½ · 1)^⅓ = 4^(−⅓).
    ids = jnp.array([[1, 1, 2, 2, 2]])
    advantages = jnp.array([[2.0, 2.0, 1.0, 1.0, 1.0]])
    terms, metrics = gspo_loss(LOGPROBS, OLD, advantages, MASK, ids, clip_eps=0.1)
    first, second = -2.0 * 1.0004, -(4 ** (-1 / 3))
    expected = [[first] * 2 + [second] * 3]
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    found = metrics.compute()
    assert found["policy/clip_fraction_high"] == pytest.approx(2 / 5)
    assert found["policy/ratio_max"] == pytest.approx(1.5)
    # The mean over sequences; and its gradient, −Âᵢsᵢ/nᵢ a token where nothing clips.
    weights, count = loss_weights(MASK, ids, kind="sequence")

    def loss(logprobs):
        terms, _ = gspo_loss(logprobs, OLD, advantages, MASK, ids, clip_eps=0.1)
        return jnp.sum(weights * terms) / count

    value, grad = jax.value_and_grad(loss)(LOGPROBS)
    np.testing.assert_allclose(value, (first + second) / 2, rtol=1e-6)
    np.testing.assert_allclose(grad, [[0, 0] + [second / 3 / 2] * 3], rtol=1e-6)


def test_cispo_by_hand():
    # Weights 1.2, 1.2, ½, ½, 1 and log π = log r − 1; no clipped token loses its
    # gradient, −weight·Â.
    options = {"max_ratio": 1.2}
    terms, metrics = cispo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, **options)
    weights = np.array([[1.2, 1.2, 0.5, 0.5, 1.0]])
    np.testing.assert_allclose(terms, -weights * ADVANTAGES * LOGPROBS, rtol=1e-6)
    assert metrics.compute()["policy/clip_fraction"] == pytest.approx(2 / 5)
    loss = lambda x: cispo_loss(x, OLD, ADVANTAGES, MASK, **options)[0].sum()
    np.testing.assert_allclose(
        jax.grad(loss)(LOGPROBS), -weights * ADVANTAGES, rtol=1e-6
    )
    terms, metrics = cispo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, min_ratio=0.75)
    weights = np.array([[1.5, 1.5, 0.75, 0.75, 1.0]])
    np.testing.assert_allclose(terms, -weights * ADVANTAGES * LOGPROBS, rtol=1e-6)
    assert metrics.compute()["policy/clip_fraction_low"] == pytest.approx(2 / 5)
