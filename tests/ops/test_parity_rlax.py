"""The same numbers as rlax, where it has the function and there are no masks."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.masking import masked_mean
from rlhf_jax.ops import gae_advantages, ppo_loss, token_entropy, token_logprobs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what rlax imports uses deprecated parts of jax
    rlax = pytest.importorskip(
        "rlax", reason="an oracle: pip install 'rlhf_jax[parity]'", exc_type=ImportError
    )

B, T, V = 4, 9, 11
ALL = jnp.full((B, T), True)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (0.7, 1.0)])
def test_gae(gamma, lam):
    rewards, values = normal(0, B, T), normal(1, B, T)
    advantages, _ = gae_advantages(rewards, values, ALL, gamma=gamma, lam=lam)
    after_last = jnp.concatenate([values, jnp.zeros((B, 1))], axis=1)
    expected = jax.vmap(
        rlax.truncated_generalized_advantage_estimation, (0, 0, None, 0)
    )(rewards, jnp.full((B, T), gamma), lam, after_last)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-5)


def test_clipped_surrogate_and_its_gradient():
    logprobs, old, advantages = normal(2, B, T), normal(3, B, T), normal(4, B, T)

    def ours(logprobs):
        return masked_mean(ppo_loss(logprobs, old, advantages, ALL)[0], ALL)

    def theirs(logprobs):
        ratio = jnp.exp(logprobs - old).reshape(-1)
        return rlax.clipped_surrogate_pg_loss(ratio, advantages.reshape(-1), 0.2)

    got, expected = jax.value_and_grad(ours), jax.value_and_grad(theirs)
    for a, b in zip(got(logprobs), expected(logprobs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Rlax softmax")
def test_logprobs_and_entropy():
    logits = normal(5, B, T, V)
    tokens = jax.random.randint(jax.random.key(6), (B, T), 0, V)
    softmax = rlax.softmax(temperature=0.7)
    logprobs = softmax.logprob(tokens[:, 1:], logits[:, :-1])
    entropy = softmax.entropy(logits[:, :-1])
    got = token_logprobs(logits, tokens, temperature=0.7)[:, 1:]
    np.testing.assert_allclose(got, logprobs, rtol=2e-6, atol=1e-6)
    got = token_entropy(logits, temperature=0.7)[:, 1:]
    np.testing.assert_allclose(got, entropy, rtol=2e-6, atol=1e-6)
