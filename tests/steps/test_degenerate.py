"""Responses with next to nothing in them, and groups that all score the same."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    create_policy_state,
    create_state,
    experience_step,
    policy_forward,
    policy_step,
    sample_step,
    sft_step,
)
from rlhf_jax.steps.policy_config import GROUPS
from rlhf_jax.types import Rollout

VOCAB, ROWS, PROMPT, NEW, EOS = 6, 8, 2, 3, 5
KEY = jax.random.key(0)
SCORES = jnp.array([0.5, -1.0, 2.0, 0.25, 1.0, 1.5, -0.5, 3.0])
# Tokens of each response, its EOS among them.
LENGTHS = {
    "EOS first in one": [1, 3, 2, 3, 3, 2, 3, 3],
    "EOS only": [1] * ROWS,
    "one is empty": [0, 3, 2, 3, 3, 2, 3, 3],
    "all are empty": [0] * ROWS,
}
every_preset = pytest.mark.parametrize("preset", POLICY_PRESETS)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Most of the time goes there; what runs once need not run fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def config_of(preset, **changes):
    """One update of the whole batch, in pairs of responses or groups of four."""
    size = 4 if POLICY_PRESETS[preset](SAMPLING).advantage in GROUPS else 1
    config = POLICY_PRESETS[preset](dataclasses.replace(SAMPLING, completions=size))
    once = {"epochs": 1, "minibatches": 1, "value_warmup": 0}
    return dataclasses.replace(config, **once | changes)


SAMPLING = SamplingConfig(NEW, completions=4, stop_ids=(EOS,))


def started(config):
    params = tabular_params(KEY, VOCAB)
    tx = optax.adam(0.1)
    return create_policy_state(tabular_policy, params, tx, kl_coef=config.kl.coef)


def rollout_of(lengths, config) -> Rollout:
    """Responses of so many tokens, with the log-probs that the policy gives them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, EOS, (ROWS, PROMPT + NEW))
    ends = PROMPT + np.array(lengths)[:, None]
    column = np.arange(PROMPT + NEW)
    tokens = np.where((column == ends - 1) & (ends > PROMPT), EOS, tokens)
    mask = (column >= PROMPT) & (column < ends)
    batch = token_batch(tokens, real=column < ends, mask=mask)
    temperature = config.sampling.temperature
    found = policy_forward(
        tabular_policy, started(config).params, batch, temperature=temperature
    )
    logprobs = jnp.where(batch.mask, found.logprobs, 0.0)
    return Rollout(
        batch=batch,
        logprobs=logprobs,
        truncated=jnp.zeros(ROWS, bool),
        row=jnp.arange(ROWS, dtype=jnp.int32),
        raw_logprobs=logprobs,
        processed_logprobs=logprobs,
    )


def learned(config, rollout, scores):
    """(experience, state after the update, all metrics); the policy is its own
    reference: KL 0.
    """
    state = started(config)
    greedy = 0.1 * jnp.ones(ROWS) if config.advantage == "greedy" else None
    prepare = functools.partial(
        experience_step, ref_apply_fn=tabular_policy, config=config
    )
    trees = state, state.params, rollout, scores, None, greedy
    experience, objective = jax.jit(prepare)(*trees)
    update = functools.partial(policy_step, config=config)
    after, metrics = jax.jit(update)(state, experience, key=KEY)
    return experience, after, objective + metrics


@pytest.mark.fault(17)
@pytest.mark.parametrize("case", LENGTHS)
@every_preset
def test_responses_of_next_to_nothing(preset, case):
    lengths = np.array(LENGTHS[case])
    config = config_of(preset, whiten_rewards=False, overlong_buffer=None)
    rollout = rollout_of(lengths, config)
    experience, after, metrics = learned(config, rollout, SCORES)
    # The score is on the EOS, which is the last token of a response, and nowhere else.
    there = np.flatnonzero(lengths)
    expected = np.zeros((ROWS, PROMPT + NEW), np.float32)
    expected[there, PROMPT + lengths[there] - 1] = SCORES[there]
    np.testing.assert_allclose(experience.rewards, expected, atol=1e-6)
    assert (np.asarray(rollout.batch.tokens)[expected != 0] == EOS).all()
    # The loss is finite, and so is all that is learned.
    assert all(np.isfinite(x) for x in jax.device_get(metrics.sums).values())
    assert metrics.sums["optim/skipped"] == 0
    chex.assert_tree_all_finite((after.params, after.opt_state))
    if case == "all are empty":
        assert metrics.compute()["optim/empty"] == 1
        assert metrics.compute()["optim/grad_norm"] == 0
        chex.assert_trees_all_equal(after.params, started(config).params)
    else:
        assert metrics.compute()["optim/empty"] == 0
        moved = after.params["logits"] != started(config).params["logits"]
        assert moved.any()


@pytest.mark.fault(17)
def test_a_policy_that_says_eos_alone():
    """From the sampler: every response is its EOS, in the mask, and not truncated."""
    params = tabular_params(KEY, VOCAB)
    params = params | {"logits": params["logits"].at[:, EOS].set(100.0)}
    prompts = token_batch(jnp.ones((ROWS // 4, PROMPT)), mask=jnp.zeros((2, PROMPT)))
    rows = jnp.arange(ROWS // 4, dtype=jnp.int32)
    options = {"apply_fn": tabular_policy, "config": SAMPLING}
    rollout = sample_step(params, prompts, rows, key=KEY, **options)
    assert rollout.batch.mask.sum(axis=1).tolist() == [1] * ROWS
    assert rollout.batch.tokens[rollout.batch.mask].tolist() == [EOS] * ROWS
    assert not rollout.truncated.any()


@pytest.mark.fault(17)
def test_demonstrations_of_nothing():
    """Prompts alone: loss 0, gradient 0, counted; with one answer, that of it."""
    state = create_state(tabular_policy, tabular_params(KEY, VOCAB), optax.sgd(1.0))
    tokens = [[1, 2, EOS], [3, 4, EOS]]
    nothing, metrics = jax.jit(sft_step)(state, token_batch(tokens, mask=[[0] * 3] * 2))
    chex.assert_trees_all_equal(nothing.params, state.params)
    assert metrics.sums["sft/loss"] == 0 and metrics.compute()["optim/empty"] == 1
    one, other = (
        jax.jit(sft_step)(state, token_batch(rows, mask=mask))[0].params
        for rows, mask in (
            (tokens, [[0] * 3, [0, 0, 1]]),
            (tokens[1:], [[0, 0, 1]]),
        )
    )
    chex.assert_trees_all_close(one, other, rtol=1e-6)


@pytest.mark.fault(16)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 3e30])
@pytest.mark.parametrize(
    "preset", [n for n in POLICY_PRESETS if config_of(n).advantage in GROUPS]
)
def test_groups_of_equal_scores_have_no_advantage_and_are_counted(preset, value):
    changes = {"score_clip": None, "overlong_buffer": None}
    config = config_of(preset, **changes)
    rollout = rollout_of([2, 3, 3, 1, 3, 2, 3, 3], config)
    experience, after, metrics = learned(config, rollout, jnp.full(ROWS, value))
    assert metrics.compute()["group/equal"] == 1
    np.testing.assert_array_equal(experience.advantages, 0)
    assert metrics.compute()["optim/skipped"] == 0
    chex.assert_tree_all_finite(after.params)
