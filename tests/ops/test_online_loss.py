import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import nash_md_loss, policy_gradient_loss, xpo_bonus

LOGPS, REF = jnp.array([-1.0, -2.0]), jnp.array([-3.0, -1.5])


def test_the_bonus_pushes_every_log_prob_down():
    loss = lambda logps: xpo_bonus(logps, alpha=0.25).sum()
    assert loss(LOGPS) == -0.75
    assert jax.grad(loss)(LOGPS).tolist() == [0.25, 0.25]  # descent lowers them


def test_nash_md_by_hand():
    # P − ½ − β log π/π_ref: 1 − ½ − 0.1·2 = 0.3 and 0.25 − ½ + 0.1·0.5 = −0.2.
    wins = jnp.array([1.0, 0.25])
    loss = lambda logps: nash_md_loss(logps, REF, wins, beta=0.1).sum()
    terms = nash_md_loss(LOGPS, REF, wins, beta=0.1)
    np.testing.assert_allclose(terms, [0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(LOGPS), [-0.3, 0.2], rtol=1e-6)


def test_nash_md_is_a_policy_gradient():
    """Of the advantage P − ½ − β Σₜ (log π − log π_ref), the same at every token."""
    rng = np.random.default_rng(0)
    logprobs, ref = (jnp.asarray(-rng.random((4, 5)), jnp.float32) for _ in range(2))
    mask = jnp.asarray(rng.random((4, 5)) < 0.7)
    wins = jnp.asarray(rng.random(4), jnp.float32)
    total = lambda x: jnp.where(mask, x, 0).sum(axis=1)
    advantages = wins - 0.5 - 0.3 * total(logprobs - ref)
    by_tokens = jnp.broadcast_to(advantages[:, None], mask.shape)
    of_completions = lambda x: nash_md_loss(total(x), total(ref), wins, beta=0.3).sum()
    of_tokens = lambda x: policy_gradient_loss(x, by_tokens, mask)[0].sum()
    expected = jax.grad(of_tokens)(logprobs)
    np.testing.assert_allclose(jax.grad(of_completions)(logprobs), expected, rtol=1e-5)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="xpo_bonus: alpha = -1.0, expected 0 or more"):
        xpo_bonus(LOGPS, alpha=-1.0)
    with pytest.raises(ValueError, match="nash_md_loss: beta = nan, expected 0 or"):
        nash_md_loss(LOGPS, REF, LOGPS, beta=float("nan"))
