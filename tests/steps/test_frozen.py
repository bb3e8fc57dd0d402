"""Steps that train adapters on a base that stays."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import token_batch

from rlhf_jax.models import (
    CausalLM,
    TransformerConfig,
    init_params,
    lora,
    policy_apply,
    score_apply,
    separate_critic_apply,
)
from rlhf_jax.models.lora import LoraConfig
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
    create_state,
    experience_step,
    pairwise_terms,
    policy_step,
    reward_eval,
    reward_step,
    sample_step,
    sft_eval,
    sft_step,
)
from rlhf_jax.steps.state import tree_bytes
from rlhf_jax.types import PreferenceBatch

MODEL = TransformerConfig(
    vocab_size=11,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    d_head=8,
    d_ff=24,
    max_length=16,
)
LORA = LoraConfig(rank=2, alpha=8.0)
PPO = PolicyConfig(
    sampling=SamplingConfig(max_new_tokens=4, temperature=0.7, stop_ids=(5,)),
    kl=KLConfig(coef=0.1),
    epochs=1,
    minibatches=2,
)
ROWS = 8
BOTH_APPLY = separate_critic_apply(MODEL, MODEL)
# Compiles twice as fast; the programs run for milliseconds.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": "0"}
)


def noisy(tree, seed):
    rng = np.random.default_rng(seed)
    noise = lambda x: x + jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(noise, tree)


@functools.cache
def base() -> Any:
    make = quick_jit(functools.partial(init_params, CausalLM(MODEL)))
    return noisy(make(key=jax.random.key(0)), 0)


@functools.cache
def networks() -> dict[str, tuple[Any, Any]]:
    """{kind: (what stays, what is trained)} on one base."""
    make = quick_jit(functools.partial(lora.init, config=LORA))
    init = lambda tree, seed: noisy(make(tree, key=jax.random.key(seed)), seed)
    trunk = {"trunk": base()["trunk"]}
    head = {
        "kernel": jnp.linspace(-0.5, 0.5, 16)[:, None],
        "bias": jnp.zeros(1),
        "gain": jnp.ones(()),
        "offset": jnp.zeros(()),
    }
    policy, critic = init(base(), 2), init(trunk, 3) | {"score_head": head}
    return {
        "sft": (base(), policy),
        "reward": (trunk, critic),
        "ppo": (
            {"policy": base(), "critic": trunk},
            {"policy": policy, "critic": critic},
        ),
    }


def frozen_of(kind):
    return lora.freeze(networks()[kind][0], LORA)


def state_of(kind, merged=False):
    """A state of the adapters, or of the same network with the adapters merged."""
    stays, trained = networks()[kind]
    merge = quick_jit(functools.partial(lora.merge, config=LORA))
    params = merge(stays, trained) if merged else trained
    # At rate 1 the parameters' change is the gradient, and so is the momentum.
    tx = optax.sgd(1.0, momentum=0.9)
    if kind == "ppo":
        return create_policy_state(BOTH_APPLY, params, tx, kl_coef=0.1)
    apply_fn = policy_apply(MODEL) if kind == "sft" else score_apply(MODEL)
    return create_state(apply_fn, params, tx)


def demonstrations(rows=ROWS):
    rng = np.random.default_rng(0)
    mask = rng.random((rows, 7)) < 0.7
    mask[:, 0] = mask[0] = False
    return token_batch(rng.integers(0, 11, (rows, 7)), mask=mask)


def pairs():
    rng = np.random.default_rng(1)
    one = lambda: token_batch(rng.integers(0, 11, (ROWS, 6)))
    return PreferenceBatch(
        chosen=one(),
        rejected=one(),
        margin=jnp.zeros(ROWS),
        weight=jnp.asarray(np.arange(ROWS) > 2, jnp.float32),
        annotator=jnp.full(ROWS, -1),
    )


def prompts():
    rng = np.random.default_rng(2)
    real = np.sort(rng.random((ROWS, 3)) < 0.7, axis=1)
    real[:, -1] = True
    return token_batch(rng.integers(0, 11, (ROWS, 3)), real=real)


LEARNED = {"sft": demonstrations, "reward": pairs}


def step_of(kind):
    if kind == "reward":
        return functools.partial(reward_step, terms_fn=pairwise_terms)
    return sft_step


@functools.cache
def updated(kind, count):
    """((state, frozen) before and after one donated update, metrics)."""
    devices = local_devices(count)
    axes = {"in_axes": (None, 0, None), "out_axes": None}
    step = data_parallel(step_of(kind), devices, **axes, donate_state=True)
    state = replicate(state_of(kind), devices)
    frozen = replicate(frozen_of(kind), devices)
    after, metrics = step(state, shard(LEARNED[kind](), devices), frozen)
    return state, frozen, after, metrics.compute()


@functools.cache
def iteration(count):
    """One whole PPO iteration on adapters through pmap, its update donated."""
    devices = local_devices(count)
    mapped = functools.partial(data_parallel, devices=devices)
    sample = mapped(
        functools.partial(
            sample_step, apply_fn=policy_apply(MODEL), config=PPO.sampling
        ),
        in_axes=(None, 0, 0, None),
        out_axes=0,
    )
    prepare = mapped(
        functools.partial(
            experience_step, ref_apply_fn=policy_apply(MODEL), config=PPO
        ),
        in_axes=(None, None, 0, 0, None),
        out_axes=(0, None),
    )
    update = mapped(
        functools.partial(policy_step, config=PPO),
        in_axes=(None, 0, None),
        out_axes=None,
        donate_state=True,
    )
    state = replicate(state_of("ppo"), devices)
    # Reference and frozen part share the base.
    frozen, reference = replicate((frozen_of("ppo"), base()), devices)
    rows = jnp.arange(ROWS, dtype=jnp.int32)
    rollout = sample(
        state.params["policy"],
        *shard((prompts(), rows), devices),
        frozen["policy"],
        key=jax.random.key(2),
    )
    scores = shard(jnp.sin(jnp.arange(float(ROWS))), devices)
    experience, objective = prepare(state, reference, rollout, scores, frozen)
    after, metrics = update(state, experience, frozen, key=jax.random.key(3))
    return state, frozen, after, unshard(experience), (objective, metrics)


def outcome(kind, count):
    return iteration(count) if kind == "ppo" else updated(kind, count)


def test_sft_loss_is_that_of_the_merged_parameters():
    merged = state_of("sft", merged=True)
    evaluate = functools.partial(sft_eval, apply_fn=policy_apply(MODEL))
    expected = quick_jit(evaluate)(merged.params, demonstrations()).compute()
    plain = quick_jit(evaluate)(base(), demonstrations()).compute()
    *_, metrics = updated("sft", 1)
    assert metrics["sft/loss"] == pytest.approx(expected["sft/loss"], abs=1e-5)
    assert abs(expected["sft/loss"] - plain["sft/loss"]) > 0.01
    stays, trained = frozen_of("sft"), networks()["sft"][1]
    found = quick_jit(evaluate)(trained, demonstrations(), stays).compute()
    assert found["sft/loss"] == pytest.approx(expected["sft/loss"], abs=1e-5)


def test_reward_loss_is_that_of_the_merged_parameters():
    merged = state_of("reward", merged=True)
    evaluate = functools.partial(
        reward_eval, score_fn=score_apply(MODEL), terms_fn=pairwise_terms
    )
    expected = quick_jit(evaluate)(merged.params, pairs()).compute()
    *_, metrics = updated("reward", 1)
    found = quick_jit(evaluate)(networks()["reward"][1], pairs(), frozen_of("reward"))
    for name in ("reward/loss", "reward/accuracy"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-5)
        assert found.compute()[name] == pytest.approx(expected[name], abs=1e-5)
    untrained = merged.params | {"trunk": base()["trunk"]}
    plain = quick_jit(evaluate)(untrained, pairs()).compute()
    assert abs(plain["reward/loss"] - expected["reward/loss"]) > 1e-3


def test_experience_is_that_of_the_merged_parameters():
    *_, experience, (objective, _) = iteration(1)
    merged = state_of("ppo", merged=True)
    prepare = functools.partial(
        experience_step, ref_apply_fn=policy_apply(MODEL), config=PPO
    )
    scores = jnp.sin(jnp.arange(float(ROWS)))
    expected, expected_objective = quick_jit(prepare)(
        merged, base(), experience.rollout, scores
    )
    chex.assert_trees_all_close(experience, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(experience.values).max() > 0.1
    found = objective.compute()
    assert found == pytest.approx(expected_objective.compute(), abs=1e-4)
    assert found["objective/kl"] > 0.01  # the adapters are away from their base


@quick_jit
def ppo_losses(state, experience, frozen):
    one_update = dataclasses.replace(PPO, epochs=1, minibatches=1)
    _, metrics = policy_step(
        state, experience, frozen, key=jax.random.key(0), config=one_update
    )
    return metrics.sums["policy/loss"], metrics.sums["value/loss"]


def test_ppo_losses_are_those_of_the_merged_parameters():
    *_, experience, _ = iteration(1)
    # Away from the parameters that sampled, the loss is more than a mean of advantages.
    rollout = experience.rollout
    logprobs = rollout.logprobs + 0.1 * jnp.sin(jnp.arange(7.0))[None]
    experience = experience.replace(rollout=rollout.replace(logprobs=logprobs))
    found = ppo_losses(state_of("ppo"), experience, frozen_of("ppo"))
    expected = ppo_losses(state_of("ppo", merged=True), experience, None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).min() > 0.01


def test_first_ratio_is_one():
    *_, (_, metrics) = iteration(1)
    found = metrics.compute()
    assert found["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert found["first/approx_kl"] < 1e-6
    assert found["first/clip_fraction"] == 0
    assert found["policy/approx_kl"] > 1e-4  # the second update did move away


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_adapters_and_heads_change_and_nothing_else_is_held(kind):
    _, _, after, *_ = outcome(kind, 1)
    stays, trained = networks()[kind]
    params = after.params
    assert jax.tree.structure(params) == jax.tree.structure(trained)
    for path, before in jax.tree.flatten_with_path(trained)[0]:
        name = jax.tree_util.keystr(path)
        found = functools.reduce(lambda tree, key: tree[key.key], path, params)
        constant = "['score_head']['bias']" in name or "['offset']" in name
        if kind == "reward" and constant:  # of a difference of two scores
            np.testing.assert_allclose(found, before, atol=1e-6, err_msg=name)
        else:
            assert not np.array_equal(found, before), name
    whole = tree_bytes(params) + tree_bytes(stays)
    assert tree_bytes(params) < whole / 2


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_the_optimiser_state_has_the_size_of_the_adapters(kind):
    _, _, after, *_ = updated(kind, 1)
    size = tree_bytes(networks()[kind][1])
    assert tree_bytes(after.opt_state) == size  # momentum
    assert tree_bytes(after) == 2 * size + 4  # with a counter


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_donation_takes_the_adapters_and_leaves_the_base(kind, count):
    before, frozen, *_ = outcome(kind, count)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    for leaf in jax.tree.leaves((frozen, networks()[kind], base())):
        assert not leaf.is_deleted()
    untouched = frozen_of(kind)
    for copy in range(count):
        here = jax.tree.map(lambda x, i=copy: x.addressable_data(i), frozen)
        chex.assert_trees_all_equal(here, untouched)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_gradients_do_not_depend_on_the_number_of_devices(kind):
    _, _, one, expected = updated(kind, 1)
    _, _, many, metrics = updated(kind, 2)
    gradients = one.opt_state
    chex.assert_trees_all_close(many.opt_state, gradients, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(many.params, one.params, rtol=1e-5, atol=1e-5)
    assert optax.tree.norm(gradients) > 0.1  # what is compared is no rounding
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_iteration_does_not_depend_on_the_number_of_devices():
    _, _, one, experience, metrics = iteration(1)
    _, _, many, same_experience, same_metrics = iteration(2)
    tokens = experience.rollout.batch.tokens
    np.testing.assert_array_equal(same_experience.rollout.batch.tokens, tokens)
    chex.assert_trees_all_close(many.params, one.params, rtol=1e-5, atol=1e-5)
    for found, expected in zip(same_metrics, metrics, strict=True):
        assert found.compute() == pytest.approx(expected.compute(), rel=1e-4, abs=1e-5)


def test_twenty_updates_learn_what_the_base_does_not_know():
    # After token t comes t + 1: the loss is 0 once it is learned.
    tokens = (np.arange(ROWS)[:, None] + np.arange(8)[None]) % 11
    batch = token_batch(tokens, mask=np.arange(8)[None] * np.ones((ROWS, 1)) > 0)
    make = quick_jit(functools.partial(lora.init, config=LORA))
    adapters = make(base(), key=jax.random.key(7))
    state = create_state(policy_apply(MODEL), adapters, optax.adam(0.05))
    step, frozen, losses = quick_jit(sft_step), frozen_of("sft"), []
    for _ in range(21):
        state, metrics = step(state, batch, frozen)
        losses.append(metrics.compute()["sft/loss"])
    assert losses[0] > 2
    assert losses[20] < 0.5 * losses[0]
