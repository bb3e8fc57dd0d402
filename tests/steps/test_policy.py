"""The PPO update: its first ratio, its minibatches, its independence of devices."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
    unshard,
)
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    KLConfig,
    PolicyConfig,
    create_policy_state,
    experience_step,
    policy_step,
    sample_step,
)

VOCAB, ROWS = 6, 32
CONFIG = PolicyConfig(
    sampling=SamplingConfig(max_new_tokens=5, temperature=0.7, stop_ids=(5,)),
    kl=KLConfig(coef=0.1),
    epochs=2,
    minibatches=4,
)


def _setup(config=CONFIG, lr=1.0):
    params = tabular_params(jax.random.key(1), VOCAB)
    tx = optax.sgd(lr)
    state = create_policy_state(tabular_policy, params, tx, kl_coef=config.kl.coef)
    rng = np.random.default_rng(0)
    real = np.sort(rng.random((ROWS, 3)) < 0.7, axis=1)
    real[:, -1] = True
    prompts = token_batch(rng.integers(0, VOCAB, (ROWS, 3)), real=real)
    return state, prompts


@functools.cache
def _iteration(count, config=CONFIG, lr=1.0):
    """One whole PPO iteration through pmap: what the experiments run."""
    devices = local_devices(count)
    state, prompts = _setup(config, lr)
    bind = lambda f, ins, outs, **kw: data_parallel(
        functools.partial(f, **kw), devices, in_axes=ins, out_axes=outs
    )
    own, ref = {"apply_fn": tabular_policy}, {"ref_apply_fn": tabular_policy}
    sample = bind(sample_step, (None, 0, 0), 0, **own, config=config.sampling)
    prepare = bind(experience_step, (None, None, 0, 0), (0, None), **ref, config=config)
    update = bind(policy_step, (None, 0), None, config=config)
    state = replicate(state, devices)
    rows = jnp.arange(ROWS, dtype=jnp.int32)
    rollout = sample(
        state.params, *shard((prompts, rows), devices), key=jax.random.key(2)
    )
    scores = shard(jnp.sin(jnp.arange(float(ROWS))), devices)
    experience, objective = prepare(state, state.params, rollout, scores)
    state, metrics = update(state, experience, key=jax.random.key(3))
    return unshard(rollout), (state, objective, metrics)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_iteration_does_not_depend_on_the_number_of_devices(count):
    # Same samples, same minibatches, same parameters after 8 SGD updates.
    config = dataclasses.replace(CONFIG, minibatches=2)
    one_rollout, one = _iteration(1, config)
    rollout, many = _iteration(count, config)
    np.testing.assert_array_equal(rollout.batch.tokens, one_rollout.batch.tokens)
    chex.assert_trees_all_close(many[0].params, one[0].params, rtol=1e-5, atol=1e-6)
    for found, expected in zip(many[1:], one[1:], strict=True):
        assert found.compute() == pytest.approx(expected.compute(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_first_ratio_is_one(temperature):
    sampling = dataclasses.replace(CONFIG.sampling, temperature=temperature)
    config = dataclasses.replace(CONFIG, sampling=sampling)
    _, (_, _, metrics) = _iteration(1, config)
    found = metrics.compute()
    assert found["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert found["first/approx_kl"] < 1e-6
    assert found["first/clip_fraction"] == 0
    assert found["policy/approx_kl"] > 1e-4  # later updates did move away


def test_every_epoch_uses_every_episode_once():
    # A loss linear in the parameters would hide it, so look at the rows themselves.
    from rlhf_jax.steps.minibatches import minibatch_rows

    index = minibatch_rows(
        jax.random.key(0),
        ROWS,
        ROWS,
        epochs=CONFIG.epochs,
        minibatches=CONFIG.minibatches,
        axis_name=None,
    )
    assert index.shape == (8, 8)
    for epoch in np.asarray(index).reshape(2, ROWS):
        assert sorted(epoch.tolist()) == list(range(ROWS))
    assert not np.array_equal(index[:4], index[4:])  # shuffled anew


def test_all_updates_happen():
    for epochs, minibatches in ((1, 1), (3, 2)):
        config = dataclasses.replace(CONFIG, epochs=epochs, minibatches=minibatches)
        _, (state, _, _) = _iteration(1, config)
        assert int(state.step) == epochs * minibatches


def test_minibatches_must_divide_the_batch():
    config = dataclasses.replace(CONFIG, minibatches=5)
    with pytest.raises(ValueError, match="minibatches = 5 of 32 episodes"):
        _iteration(1, config)


def test_kl_coefficient_follows_its_target():
    # The policy is its own reference: KL = 0, error clipped to −0.2, n/h = 32/3200:
    # β ← 0.1 · (1 − 0.2 · 0.01).
    kl = KLConfig(coef=0.1, target=6.0, horizon=3200)
    _, (state, _, _) = _iteration(1, dataclasses.replace(CONFIG, kl=kl))
    assert float(state.kl_coef) == pytest.approx(0.1 * 0.998, rel=1e-6)
    _, (state, _, _) = _iteration(1)
    assert float(state.kl_coef) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.fault(17)
def test_masked_episodes_leave_the_parameters_alone():
    state, prompts = _setup()
    rollout = sample_step(
        state.params,
        prompts,
        jnp.arange(ROWS),
        key=jax.random.key(2),
        apply_fn=tabular_policy,
        config=CONFIG.sampling,
    )
    mask = jnp.zeros_like(rollout.batch.mask)
    batch = dataclasses.replace(rollout.batch, mask=mask)
    rollout = dataclasses.replace(rollout, batch=batch)
    experience, _ = experience_step(
        state,
        state.params,
        rollout,
        jnp.ones(ROWS),
        ref_apply_fn=tabular_policy,
        config=CONFIG,
    )
    after, metrics = policy_step(
        state, experience, key=jax.random.key(3), config=CONFIG
    )
    chex.assert_trees_all_equal(after.params, state.params)
    assert metrics.compute()["optim/grad_norm"] == 0


def test_one_compilation_serves_all_iterations():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def iterate(state, prompts, key):
        rollout = sample_step(
            state.params,
            prompts,
            jnp.arange(ROWS),
            key=key,
            apply_fn=tabular_policy,
            config=CONFIG.sampling,
        )
        experience, _ = experience_step(
            state,
            state.params,
            rollout,
            jnp.ones(ROWS),
            ref_apply_fn=tabular_policy,
            config=CONFIG,
        )
        return policy_step(state, experience, key=key, config=CONFIG)

    state, prompts = _setup()
    for seed in range(3):
        state, _ = iterate(state, prompts, jax.random.key(seed))
    assert int(state.step) == 3 * 8
