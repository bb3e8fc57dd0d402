"""Steps over meshes: leaves where their names say, updates those of one device."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit, randomize
from toys import token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.models import (
    ActorCritic,
    CausalLM,
    ScoreModel,
    TransformerConfig,
    actor_critic_apply,
    init_params,
    policy_apply,
    score_apply,
)
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.sharding import (
    make_mesh,
    mesh_parallel,
    place_batch,
    place_state,
    state_shardings,
)
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
    reward_step,
    sft_step,
)
from rlhf_jax.types import Experience, PreferenceBatch, Rollout

MODEL = TransformerConfig(
    vocab_size=24,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=4,
    d_ff=24,
    max_length=16,
)
ROWS, LENGTH, KEY = 16, 6, jax.random.key(3)
KINDS = ("sft", "reward", "dpo", "ppo", "grpo")
MESHES = {"data": (2, 1, 1), "fsdp": (4, 4, 1), "tensor": (2, 1, 2), "all": (8, 2, 2)}


@functools.cache
def params_of(network, seed=1):
    init = quick_jit(lambda key: init_params(network(MODEL), key=key))
    return randomize(init(jax.random.key(seed)))


def rows(seed):
    """Ragged masks; the first quarter has none."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH)[None] < rng.integers(1, LENGTH + 1, ROWS)[:, None]
    mask[:, 0] = mask[: ROWS // 4] = False
    return token_batch(rng.integers(0, 24, (ROWS, LENGTH)), mask=mask)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rollout():
    logprobs = -3 + 0.1 * numbers(4, ROWS, LENGTH)
    truncated, row = jnp.zeros(ROWS, bool), jnp.arange(ROWS, dtype=jnp.int32)
    return Rollout(rows(0), logprobs, truncated, row, logprobs, logprobs)


def task(kind, parts=1):
    """(step, state, batch), the optimiser with a moment; rate 1, momentum 0."""
    tx = optax.sgd(1.0, momentum=0.0)
    state = create_state(policy_apply(MODEL), params_of(CausalLM), tx)
    pairs = PreferenceBatch(
        rows(0), rows(1), jnp.zeros(ROWS), jnp.arange(ROWS) / 7, jnp.zeros(ROWS, int)
    )
    if kind == "sft":
        return functools.partial(sft_step, micro_batches=parts), state, rows(0)
    if kind == "reward":
        state = create_state(score_apply(MODEL), params_of(ScoreModel), tx)
        step = functools.partial(
            reward_step, terms_fn=pairwise_terms, micro_batches=parts
        )
        return step, state, pairs
    if kind == "dpo":
        step = functools.partial(
            preference_step,
            ref_params=params_of(CausalLM, seed=2),
            ref_apply_fn=policy_apply(MODEL),
            config=PreferenceConfig(micro_batches=parts),
        )
        return step, state, pairs
    per_token = [numbers(seed, ROWS, LENGTH) for seed in range(5, 9)]
    scores = numbers(9, ROWS)
    if kind == "grpo":
        sampling = SamplingConfig(max_new_tokens=5, completions=2)
        config = GRPOConfig(sampling, minibatches=2, micro_batches=parts)
        step = functools.partial(grpo_step, config=config, key=KEY)
        return step, state, GroupExperience(rollout(), per_token[0] - 3, scores, scores)
    config = PPOConfig(epochs=1, minibatches=2, micro_batches=parts)
    state = create_policy_state(
        actor_critic_apply(MODEL), params_of(ActorCritic), tx, kl_coef=0.1
    )
    experience = Experience(
        rollout(),
        ref_logprobs=per_token[0] - 3,
        values=per_token[1],
        rewards=per_token[2],
        advantages=per_token[3],
        returns=per_token[2],
        scores=scores,
    )
    return functools.partial(policy_step, config=config, key=KEY), state, experience


@functools.cache
def plain(kind):
    step, state, batch = task(kind)
    after, metrics = quick_jit(step)(state, batch)
    return after.params, metrics.compute()


def on_mesh(kind, mesh, parts=1):
    step, state, batch = task(kind, parts)
    mapped = mesh_parallel(step, donate_state=True)
    state = place_state(state, mesh)
    where = jax.tree.map(lambda x: x.sharding, state)
    after, metrics = mapped(state, place_batch(batch, mesh))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x.sharding, after), where)
    return after.params, metrics.compute()


def assert_same(found, expected):
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_that_of_one_device(kind, mesh):
    count, fsdp, tensor = MESHES[mesh]
    mesh = make_mesh(jax.devices()[:count], fsdp=fsdp, tensor=tensor)
    assert_same(on_mesh(kind, mesh), plain(kind))


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_micro_batches_and_the_order_of_devices_change_nothing(kind):
    mesh = make_mesh(jax.devices()[3::-1], fsdp=2, tensor=1)
    assert_same(on_mesh(kind, mesh, parts=2), plain(kind))


def test_parts_are_where_the_rules_say():
    mesh = make_mesh(jax.devices()[:8], fsdp=2, tensor=2)
    state = create_state(policy_apply(MODEL), params_of(CausalLM), optax.adam(1e-3))
    placed = place_state(state, mesh)
    kernel = placed.params["trunk"]["blocks"]["attn"]["q_proj"]["kernel"]
    assert kernel.shape == (2, 16, 16)
    assert {part.data.shape for part in kernel.addressable_shards} == {(2, 8, 8)}
    moment = placed.opt_state[0].mu["trunk"]["blocks"]["attn"]["q_proj"]["kernel"]
    assert moment.sharding == kernel.sharding
    norm = placed.params["trunk"]["final_norm"]["scale"]
    assert norm.sharding.is_fully_replicated
    assert not state.params["trunk"]["final_norm"]["scale"].is_deleted()


def test_every_large_leaf_has_a_rule():
    shapes = jax.eval_shape(lambda: params_of(ActorCritic))
    placed = state_shardings(shapes, make_mesh(jax.devices()[:8], fsdp=2, tensor=4))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        where = functools.reduce(lambda tree, key: tree[key.key], path, placed)
        if leaf.size > 100:
            assert "fsdp" in where.spec, path


def test_what_is_refused():
    with pytest.raises(UserError, match="fsdp = 2 and tensor = 2 on 6 devices"):
        make_mesh(jax.devices()[:6], fsdp=2, tensor=2)
    mesh = make_mesh(jax.devices()[:4], fsdp=2)
    with pytest.raises(UserError, match="batch of 6 rows on 4 parts"):
        place_batch(jnp.zeros((6, 2)), mesh)
