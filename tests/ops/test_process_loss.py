import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import binary_reward_loss, process_reward_loss


def test_steps_by_hand():
    # Odds e^s = 3: right with probability 3/4. Two steps, then one that is half right.
    s = jnp.full((1, 4), np.log(3.0), jnp.float32)
    labels = jnp.array([[1.0, 9.0, 0.0, 0.5]])
    mask = jnp.array([[True, False, True, True]])
    loss = process_reward_loss(s, labels, mask)
    half = -0.5 * np.log(3 / 4) - 0.5 * np.log(1 / 4)
    expected = [[-np.log(3 / 4), 0.0, -np.log(1 / 4), half]]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_labels_may_be_bools_or_ints(dtype):
    s, mask = jnp.array([[2.0, -1.0]]), jnp.ones((1, 2), bool)
    loss = process_reward_loss(s, jnp.array([[1, 0]], dtype), mask)
    logits = jnp.stack([jnp.zeros(2), s[0]], axis=1)
    expected = binary_reward_loss(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(loss[0], expected, rtol=1e-6)


def test_far_apart_is_stable():
    mask, labels = jnp.ones((1, 2), bool), jnp.array([[1, 0]])
    loss = lambda s: process_reward_loss(s, labels, mask).sum()
    for s, value, gradient in (
        (jnp.array([[-1e4, 1e4]]), 2e4, [[-1.0, 1.0]]),
        (jnp.array([[1e4, -1e4]]), 0.0, [[0.0, 0.0]]),
    ):
        assert loss(s) == value
        assert jax.grad(loss)(s).tolist() == gradient


def test_equals_torch():
    torch = pytest.importorskip("torch", reason="the oracle of this test")
    rng = np.random.default_rng(0)
    s, y = rng.normal(size=(3, 5)), rng.uniform(size=(3, 5))
    mask = rng.random((3, 5)) < 0.5
    scores = torch.tensor(s, requires_grad=True)
    expected = torch.nn.BCEWithLogitsLoss(reduction="none")(scores, torch.tensor(y))
    expected[torch.tensor(mask)].sum().backward()
    terms = process_reward_loss(jnp.array(s), jnp.array(y), jnp.array(mask))
    expected = np.where(mask, expected.detach().numpy(), 0)
    np.testing.assert_allclose(terms, expected, rtol=1e-5, atol=1e-7)
    loss = lambda s: process_reward_loss(s, jnp.array(y), jnp.array(mask)).sum()
    gradient = jax.grad(loss)(jnp.array(s))
    np.testing.assert_allclose(gradient, scores.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_shapes_and_mask_are_checked():
    with pytest.raises(AssertionError):
        process_reward_loss(
            jnp.zeros((1, 2)), jnp.zeros((1, 1)), jnp.ones((1, 2), bool)
        )
    with pytest.raises(AssertionError):
        process_reward_loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2)))
