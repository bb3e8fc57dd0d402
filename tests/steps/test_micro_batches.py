"""Into how many devices and micro-batches an update is cut changes nothing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, tabular_score, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    GroupExperience,
    GRPOConfig,
    PPOConfig,
    PreferenceConfig,
    create_policy_state,
    create_state,
    grpo_step,
    pairwise_terms,
    policy_step,
    preference_step,
    ranking_terms,
    reward_step,
    sft_step,
)
from rlhf_jax.types import Experience, PreferenceBatch, Rollout

VOCAB, ROWS, LENGTH = 6, 16, 7
TWICE = SamplingConfig(max_new_tokens=5, completions=2)
KINDS = ("sft", "reward", "ranking", "dpo", "ppo", "grpo")
KEY = jax.random.key(3)


def table(seed):
    return tabular_params(jax.random.key(seed), VOCAB)


def rows(seed):
    """Ragged masks; the first quarter, a micro-batch and a device's part, has none."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, LENGTH, ROWS)[:, None]
    mask = np.arange(LENGTH)[None] < length
    mask[:, 0] = mask[: ROWS // 4] = False
    return token_batch(rng.integers(0, VOCAB, (ROWS, LENGTH)), mask=mask)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rollout():
    logprobs = -1.5 + 0.1 * numbers(4, ROWS, LENGTH)
    return Rollout(
        batch=rows(0),
        logprobs=logprobs,
        truncated=jnp.zeros(ROWS, bool),
        row=jnp.arange(ROWS, dtype=jnp.int32),
        raw_logprobs=logprobs,
        processed_logprobs=logprobs,
    )


def pairs():
    weight = np.where(np.arange(ROWS) < 4, 0.0, np.arange(ROWS) / 7)
    return PreferenceBatch(
        chosen=rows(0),
        rejected=rows(1),
        margin=jnp.zeros(ROWS),
        weight=jnp.asarray(weight, jnp.float32),
        annotator=jnp.full(ROWS, -1),
    )


def policy_state(scores=False):
    if scores:
        params, apply_fn = {"scores": numbers(9, VOCAB, 1)}, tabular_score
        return create_state(apply_fn, params, optax.sgd(1.0))
    create = functools.partial(create_policy_state, kl_coef=0.1)
    return create(tabular_policy, table(1), optax.sgd(1.0))


def task(kind, parts):
    """(step, state, batch): SGD at rate 1, so that a change is a gradient."""
    if kind == "sft":
        step = functools.partial(sft_step, micro_batches=parts)
        return step, policy_state(), rows(0)
    if kind in ("reward", "ranking"):
        terms_fn = pairwise_terms if kind == "reward" else ranking_terms
        ranks = jnp.asarray([[0, 1], [1, 0]] * (ROWS // 4), jnp.int32)
        judged = pairs() if kind == "reward" else (rows(0), ranks)
        step = functools.partial(reward_step, terms_fn=terms_fn, micro_batches=parts)
        return step, policy_state(scores=True), judged
    if kind == "dpo":
        config = PreferenceConfig(micro_batches=parts)
        step = functools.partial(
            preference_step,
            ref_params=table(2),
            ref_apply_fn=tabular_policy,
            config=config,
        )
        return step, policy_state(), pairs()
    per_token = [numbers(seed, ROWS, LENGTH) for seed in range(5, 9)]
    if kind == "grpo":
        config = GRPOConfig(TWICE, minibatches=2, micro_batches=parts)
        experience = GroupExperience(
            rollout(), per_token[0] - 2, per_token[1][:, 0], per_token[2][:, 0]
        )
        step = functools.partial(grpo_step, config=config, key=KEY)
        return step, policy_state(), experience
    config = PPOConfig(epochs=1, minibatches=2, micro_batches=parts)
    experience = Experience(
        rollout(),
        ref_logprobs=per_token[0] - 2,
        values=per_token[1],
        rewards=per_token[2],
        advantages=per_token[3],
        returns=per_token[2],
        scores=per_token[1][:, 0],
    )
    step = functools.partial(policy_step, config=config, key=KEY)
    return step, policy_state(), experience


@functools.cache
def updated(kind, count, parts):
    """(parameters, metrics) after an update on so many devices, in so many parts."""
    step, state, batch = task(kind, parts)
    devices = local_devices(count)
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=None)
    state, metrics = mapped(replicate(state, devices), shard(batch, devices))
    return state.params, metrics.compute()


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_cuts_change_nothing(kind, count, parts):
    params, metrics = updated(kind, count, parts)
    plain, expected = updated(kind, 1, 1)
    chex.assert_trees_all_close(params, plain, rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert metrics["optim/grad_norm"] > 0.01


def test_nothing_to_learn_changes_nothing():
    state, batch = policy_state(), rows(0)
    batch = dataclasses.replace(batch, mask=jnp.zeros_like(batch.mask))
    after, _ = sft_step(state, batch, micro_batches=2)
    chex.assert_trees_all_equal(after.params, state.params)


def test_activations_of_one_part_are_all_there_is():
    """The compiler plans half the temporary memory, or less, for four parts."""

    params = tabular_params(jax.random.key(0), 512)
    state = create_state(tabular_policy, params, optax.sgd(1.0))
    batch = token_batch(np.zeros((16, 128), int))

    def bytes_of(parts):
        step = jax.jit(functools.partial(sft_step, micro_batches=parts))
        planned = step.lower(state, batch).compile().memory_analysis()
        assert planned is not None
        return planned.temp_size_in_bytes

    assert bytes_of(4) < bytes_of(1) / 2


def test_parts_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="micro_batches = 3 of 16 rows"):
        sft_step(policy_state(), rows(0), micro_batches=3)
    for config in (PPOConfig, PreferenceConfig):
        with pytest.raises(UserError, match="micro_batches = 0"):
            config(micro_batches=0)
