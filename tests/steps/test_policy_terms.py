"""What a policy's loss may have besides: entropy, demonstrations, a critic's start."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps.test_group import (
    KEY,
    ONE_UPDATE,
    ROWS,
    SCORES,
    _experience,
    _logprobs,
    _rollout,
    _state,
    _table,
)
from toys import tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    PolicyConfig,
    create_policy_state,
    experience_step,
    policy_iteration,
    policy_step,
)

PLAIN = dataclasses.replace(ONE_UPDATE, kl=KLConfig(coef=0.0))
PPO = PolicyConfig(
    SamplingConfig(max_new_tokens=5, temperature=0.7), epochs=1, missing_stop="keep"
)


def shown():
    """A demonstration for each episode; the first half has nothing to learn."""
    rng = np.random.default_rng(5)
    mask = rng.random((ROWS, 4)) < 0.6
    mask[:, 0], mask[: ROWS // 2] = False, False
    return token_batch(rng.integers(0, 6, (ROWS, 4)), mask=mask)


def change(config, experience, *others):
    """(gradient by SGD at rate 1, metrics)."""
    state = _state()
    after, metrics = policy_step(state, experience, *others, key=KEY, config=config)
    moved = lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return jax.tree.map(moved, state.params, after.params), metrics.compute()


def slopes(of, logits):
    """The gradient of a function of the table by central differences."""
    found = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-6
        found[index] = (of(logits + step) - of(logits - step)) / 2e-6
    return found


def test_entropy_is_that_of_the_policy_at_its_temperature():
    experience, _ = _experience(PLAIN)
    plain, _ = change(PLAIN, experience)
    found, metrics = change(dataclasses.replace(PLAIN, entropy_coef=0.5), experience)
    batch, mask = _rollout().batch, np.asarray(_rollout().batch.mask)

    def entropy(logits):
        z = logits[np.asarray(batch.tokens)[:, :-1][mask[:, 1:]]] / 0.7
        logp = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return -np.sum(np.exp(logp) * logp, axis=-1).mean()

    logits = np.asarray(_table(1)["logits"], np.float64)
    assert metrics["policy/entropy"] == pytest.approx(entropy(logits), rel=1e-5)
    expected = plain["logits"] - 0.5 * slopes(entropy, logits)
    np.testing.assert_allclose(found["logits"], expected, atol=2e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_demonstrations_are_a_mean_over_their_own_tokens(parts):
    experience, _ = _experience(PLAIN)
    plain, _ = change(PLAIN, experience)
    config = dataclasses.replace(PLAIN, ptx_coef=0.3, micro_batches=parts)
    batch = shown()
    found, metrics = change(config, experience, None, batch)

    def loss(logits):
        return -_logprobs(logits, batch.tokens, 1.0)[np.asarray(batch.mask)].mean()

    logits = np.asarray(_table(1)["logits"], np.float64)
    assert metrics["policy/ptx_loss"] == pytest.approx(loss(logits), rel=1e-5)
    expected = plain["logits"] + 0.3 * slopes(loss, logits)
    np.testing.assert_allclose(found["logits"], expected, atol=2e-6)


def test_demonstrations_on_eight_devices():
    config = dataclasses.replace(PLAIN, ptx_coef=0.3, minibatches=2)
    experience, _ = _experience(config)
    one, metrics = policy_step(
        _state(), experience, None, shown(), key=KEY, config=config
    )
    devices = local_devices(8)
    step = functools.partial(policy_step, config=config)
    step = data_parallel(step, devices, in_axes=(None, 0, None, 0), out_axes=None)
    given = shard((experience, shown()), devices)
    many, found = step(replicate(_state(), devices), given[0], None, given[1], key=KEY)
    chex.assert_trees_all_close(many.params, one.params, rtol=1e-5, atol=1e-6)
    assert found.compute() == pytest.approx(metrics.compute(), rel=1e-4, abs=1e-6)


def test_demonstrations_and_their_weight_belong_together():
    experience, _ = _experience(PLAIN)
    config = dataclasses.replace(PLAIN, ptx_coef=0.3)
    with pytest.raises(ValueError, match="ptx_coef = 0.3: no demonstrations"):
        change(config, experience)
    with pytest.raises(ValueError, match="ptx_coef = 0.0: there are demonstrations"):
        change(PLAIN, experience, None, shown())
    few = jax.tree.map(lambda x: x[:3], shown())
    with pytest.raises(ValueError, match="3 demonstrations: .* each of 32 rows"):
        change(config, experience, None, few)


def test_the_critic_learns_alone_at_first():
    config = dataclasses.replace(
        PPO, epochs=3, value_warmup=2, entropy_coef=0.1, value_clip_eps=None
    )
    state = create_policy_state(
        tabular_policy, _table(1), optax.sgd(1.0), kl_coef=config.kl.coef
    )
    experience, _ = experience_step(
        state, _table(2), _rollout(), SCORES, ref_apply_fn=tabular_policy, config=config
    )
    moved = []
    one = dataclasses.replace(config, epochs=1)
    for _ in range(3):
        after, _ = policy_step(state, experience, key=KEY, config=one)
        differs = jax.tree.map(
            lambda a, b: bool(jnp.any(a != b)), after.params, state.params
        )
        moved.append((differs["logits"], differs["values"]))
        state = after
    assert moved == [(False, True), (False, True), (True, True)]


@pytest.mark.parametrize("kind, expected", [("truncate", 1.5), ("mask", 0.0)])
def test_rollouts_of_an_older_policy_are_weighted(kind, expected):
    """The update begins at ratio 1, and terms have the weight π/μ up to the cap."""
    config = dataclasses.replace(PLAIN, importance_cap=1.5, importance_kind=kind)
    experience, _ = _experience(config, drawn_by=5)
    plain, _ = _experience(PLAIN, drawn_by=5)
    mask = np.asarray(_rollout(5).batch.mask)
    now = _logprobs(_table(1)["logits"], _rollout(5).batch.tokens)
    weights = np.exp(now - np.asarray(_rollout(5).logprobs, np.float64))
    assert (weights[mask] > 1.5).any() and (weights[mask] < 1.5).any()
    weights = np.where(weights > 1.5, expected, weights)
    np.testing.assert_allclose(
        np.asarray(experience.advantages)[mask],
        (np.asarray(plain.advantages) * weights)[mask],
        rtol=1e-4,
        atol=1e-6,
    )
    _, metrics = change(config, experience)
    assert metrics["first/ratio"] == pytest.approx(1, abs=1e-4)
    _, metrics = change(PLAIN, plain)
    assert abs(metrics["first/ratio"] - 1) > 0.01


def test_greedy_scores_are_of_the_most_probable_responses():
    """ReMax on a table of one step: the reward of the greedy arm is the baseline."""
    config = POLICY_PRESETS["remax"](SamplingConfig(max_new_tokens=1, completions=2))
    config = dataclasses.replace(config, kl=KLConfig(coef=0.0))
    worth = jnp.array([0.3, -0.2, 0.9, 0.1, 0.5, -0.7])
    seen = []

    def reward(_, rollout):
        seen.append(rollout.batch.tokens[:, -1])
        return worth[rollout.batch.tokens[:, -1]]

    prompts = token_batch(np.arange(8)[:, None] % 6)
    state = create_policy_state(tabular_policy, _table(1), optax.sgd(1.0), kl_coef=0.0)
    policy_iteration(
        state,
        prompts,
        {},
        key=KEY,
        sample_fn=tabular_policy,
        ref_apply_fn=tabular_policy,
        reward_fn=reward,
        config=config,
    )
    most = jnp.argmax(_table(1)["logits"][prompts.tokens[:, 0]], axis=-1)
    (greedy,) = [tokens for tokens in seen if len(tokens) == 8]
    np.testing.assert_array_equal(greedy, most)
    with pytest.raises(ValueError, match="expected greedy_scores, got None"):
        _experience(dataclasses.replace(config, sampling=ONE_UPDATE.sampling))


def test_a_critic_is_asked_for_where_there_is_none():
    state, no_critic = _state(), ONE_UPDATE
    experience, _ = _experience(no_critic)
    with pytest.raises(ValueError, match="gae: the experience has no values"):
        policy_step(state, experience, key=KEY, config=PPO)
    with pytest.raises(UserError, match="entropy_coef = -1.0"):
        dataclasses.replace(PPO, entropy_coef=-1.0)
