"""An iteration in one function: the steps one by one, populations, devices."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from models.tiny import quick_jit
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.models import (
    ActorCritic,
    CausalLM,
    TransformerConfig,
    actor_critic_apply,
    init_params,
    policy_apply,
)
from rlhf_jax.optim import OptimConfig, make_optimizer, make_tunable_optimizer
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
    sample_step,
)

MODEL = TransformerConfig(
    vocab_size=12,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    d_ff=16,
    max_length=16,
)
POLICY, CRITIC = policy_apply(MODEL), actor_critic_apply(MODEL)
PPO = PolicyConfig(
    sampling=SamplingConfig(max_new_tokens=5, stop_ids=(11,)),
    kl=KLConfig(coef=0.1),
    epochs=2,
    minibatches=2,
)
GRPO = dataclasses.replace(
    POLICY_PRESETS["grpo"](
        SamplingConfig(max_new_tokens=5, stop_ids=(11,), completions=2)
    ),
    epochs=2,
)
TX = make_tunable_optimizer(OptimConfig(schedule="constant", eps=1e-5), 1)
CONFIGS = {"ppo": PPO, "grpo": GRPO}
PROMPTS = token_batch(
    [[3, 4, 5], [0, 6, 7], [8, 9, 10], [0, 0, 3]],
    real=[[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]],
)
REWARD = jnp.sin(jnp.arange(12.0))  # of each id
KEY = jax.random.key(5)


def reward(table, rollout):
    """The mean over the response of what its tokens are worth."""
    worth, mask = table[rollout.batch.tokens], rollout.batch.mask
    return jnp.sum(worth * mask, axis=1) / jnp.sum(mask, axis=1)


@functools.cache
def initial(kind):
    network = ActorCritic(MODEL) if kind == "ppo" else CausalLM(MODEL)
    return quick_jit(lambda key: init_params(network, key=key))


def start(kind, seed=0, rate=0.01, kl_coef=0.1):
    params = initial(kind)(jax.random.key(seed))
    network = CRITIC if kind == "ppo" else POLICY
    state = create_policy_state(network, params, TX, kl_coef=kl_coef)
    tuned = optax.tree.set(state.opt_state, learning_rate=jnp.float32(rate))
    return state.replace(opt_state=tuned)


def reference(kind):
    return start(kind, seed=9).params  # another policy: its KL is not 0


def iteration(kind):
    """(state, ref_params, key) -> (state, metrics)."""
    options = {"sample_fn": POLICY, "ref_apply_fn": POLICY, "reward_fn": reward}
    whole: Any = functools.partial(policy_iteration, config=CONFIGS[kind], **options)
    return lambda state, ref, key: whole(state, PROMPTS, ref, REWARD, key=key)


@functools.cache
def compiled(kind):
    return quick_jit(iteration(kind))


def one_by_one(kind, state, ref, key):
    """What a script does: each step compiled by itself."""
    bind = lambda f, **options: quick_jit(functools.partial(f, **options))
    config = CONFIGS[kind]
    sample_key, update_key = jax.random.split(key)
    sample = bind(sample_step, apply_fn=POLICY, config=config.sampling)
    rollout = sample(state.params, PROMPTS, jnp.arange(4), key=sample_key)
    scores = reward(REWARD, rollout)
    prepare = bind(experience_step, ref_apply_fn=POLICY, config=config)
    experience, before = prepare(state, ref, rollout, scores)
    update = bind(policy_step, config=config)
    state, after = update(state, experience, key=update_key)
    return state, before + after


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_equals_the_steps_one_by_one(kind):
    state, metrics = compiled(kind)(start(kind), reference(kind), KEY)
    expected, found = one_by_one(kind, start(kind), reference(kind), KEY)
    chex.assert_trees_all_close(state.params, expected.params, atol=1e-5, rtol=1e-5)
    found = found.compute()
    assert metrics.compute() == pytest.approx(found, abs=1e-5, rel=1e-5)
    assert found["objective/kl"] != 0 and found["objective/score"] != 0
    assert found["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert int(state.step) == (4 if kind == "ppo" else 2)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_members_equal_single_runs(kind):
    # Seeds, keys, learning rates and KL coefficients differ.
    settings = [(0, 0.01, 0.1), (1, 0.03, 0.1), (2, 0.01, 0.5)]
    states = [start(kind, *each) for each in settings]
    keys = jax.random.split(KEY, len(states))
    ref = reference(kind)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    many = quick_jit(jax.vmap(iteration(kind), in_axes=(0, None, 0)))
    after, metrics = many(stacked, ref, keys)
    for i, state in enumerate(states):
        expected, found = compiled(kind)(state, ref, keys[i])
        own = jax.tree.map(lambda x, i=i: x[i], (after.params, metrics))
        chex.assert_trees_all_close(own[0], expected.params, atol=1e-4, rtol=1e-4)
        assert own[1].compute() == pytest.approx(found.compute(), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_learning_rate_and_key_matter(kind):
    change = lambda rate, key: jax.tree.map(
        jnp.subtract,
        compiled(kind)(start(kind, rate=rate), reference(kind), key)[0].params,
        start(kind).params,
    )
    slow, fast = change(1e-4, KEY), change(1e-2, KEY)
    other = change(1e-4, jax.random.key(6))
    assert optax.tree.norm(fast) > 10 * optax.tree.norm(slow) > 0
    assert optax.tree.norm(optax.tree.sub(slow, other)) > 0


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_kl_coefficient_matters(kind):
    lax, strict = (
        compiled(kind)(start(kind, kl_coef=coef), reference(kind), KEY)[0].params
        for coef in (0.0, 1.0)
    )
    assert optax.tree.norm(optax.tree.sub(lax, strict)) > 1e-3


def test_does_not_depend_on_the_number_of_devices():
    table = tabular_policy
    options = {"sample_fn": table, "ref_apply_fn": table, "reward_fn": reward}
    whole: Any = functools.partial(policy_iteration, config=PPO, **options)
    params, other = (tabular_params(jax.random.key(seed), 12) for seed in (0, 1))
    before = create_policy_state(table, params, optax.sgd(0.1), kl_coef=0.1)
    found = []
    for count in (1, 2):
        devices = local_devices(count)
        mapped = data_parallel(
            whole, devices, in_axes=(None, 0, None, None), out_axes=None
        )
        state, *given = replicate((before, other, REWARD), devices)
        state, metrics = mapped(state, shard(PROMPTS, devices), *given, key=KEY)
        found.append((jax.device_get(state.params), metrics.compute()))
    (one, expected), (two, metrics) = found
    chex.assert_trees_all_close(one, two, atol=1e-4, rtol=1e-4)
    assert metrics == pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_tunable_optimizer_equals_the_plain_one(clip):
    config = OptimConfig(0.02, "linear", weight_decay=0.1, max_grad_norm=clip, warmup=1)
    params = {"kernel": jnp.array([1.0, -2.0])}
    plain, tunable = make_optimizer(config, 5), make_tunable_optimizer(config, 5)
    a, b = plain.init(params), tunable.init(params)
    for i in range(5):
        grads = {"kernel": jnp.array([jnp.sin(i), 1.0])}
        expected, a = plain.update(grads, a, params)
        found, b = tunable.update(grads, b, params)
        chex.assert_trees_all_close(found, expected, rtol=1e-5)
