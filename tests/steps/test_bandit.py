"""A known truth: PPO with a KL leash must find π* ∝ π_ref · exp(r/β)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    KLConfig,
    PPOConfig,
    create_policy_state,
    experience_step,
    policy_step,
    sample_step,
)

ARMS, ROWS, ITERATIONS = 8, 2048, 150


def _train(beta, rewards, reference):
    config = PPOConfig(
        sampling=SamplingConfig(max_new_tokens=1),
        kl=KLConfig(coef=beta),
        missing_stop="keep",
        epochs=2,
        minibatches=2,
        value_coef=0.5,
        value_clip_eps=None,
    )
    updates = ITERATIONS * config.epochs * config.minibatches
    tx = optax.adam(optax.linear_schedule(0.1, 0.0, updates), eps=1e-5)
    state = create_policy_state(tabular_policy, reference, tx, kl_coef=beta)
    prompts = token_batch(jnp.zeros((ROWS, 1)))

    def iterate(state, key):
        sample_key, update_key = jax.random.split(key)
        rollout = sample_step(
            state.params,
            prompts,
            jnp.arange(ROWS),
            key=sample_key,
            apply_fn=tabular_policy,
            config=config.sampling,
        )
        experience, _ = experience_step(
            state,
            reference,
            rollout,
            rewards[rollout.batch.tokens[:, -1]],
            ref_apply_fn=tabular_policy,
            config=config,
        )
        state, _ = policy_step(state, experience, key=update_key, config=config)
        return state, None

    keys = jax.random.split(jax.random.key(0), ITERATIONS)
    scan = jax.jit(functools.partial(jax.lax.scan, iterate))
    return scan(state, keys)[0]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ppo_reaches_the_optimum_in_closed_form(beta):
    reference = tabular_params(jax.random.key(1), ARMS)
    rewards = jax.random.uniform(jax.random.key(2), (ARMS,), minval=-1.0, maxval=1.0)
    log_ref = jax.nn.log_softmax(reference["logits"][0])
    optimum = jax.nn.softmax(log_ref + rewards / beta)
    start = 0.5 * float(jnp.abs(jnp.exp(log_ref) - optimum).sum())
    state = _train(beta, rewards, reference)
    found = jax.nn.softmax(state.params["logits"][0])
    distance = 0.5 * float(jnp.abs(found - optimum).sum())
    assert start > 0.1  # there was something to learn
    assert distance < 0.02, f"total variation {distance:.4f} from {start:.4f}"
    # The optimal objective is β · log E_ref[exp(r/β)], and the critic knows it.
    best = beta * jax.nn.logsumexp(log_ref + rewards / beta)
    assert float(state.params["values"][0]) == pytest.approx(float(best), abs=0.02)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
