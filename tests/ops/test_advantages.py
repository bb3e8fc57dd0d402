from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.ops import gae_advantages

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
