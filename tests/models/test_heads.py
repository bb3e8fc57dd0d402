"""Heads, and the pure functions on parameter trees."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import batch_of, randomize

from rlhf_jax.models import (
    ActorCritic,
    ScoreHead,
    ScoreModel,
    Transformer,
    actor_critic_apply,
    init_params,
    score_apply,
    score_params_from_policy,
    separate_critic_apply,
)

BATCH = [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_score_head_by_hand():
    """gain·(h·w + b) + offset = 2·(1·3 + 2·4 + 0.5) − 1 = 22."""
    params = {
        "kernel": jnp.array([[3.0], [4.0]]),
        "bias": jnp.array([0.5]),
        "gain": jnp.array(2.0),
        "offset": jnp.array(-1.0),
    }
    hidden = jnp.array([[[1.0, 2.0]]], jnp.bfloat16)
    scores = ScoreHead().apply({"params": params}, hidden)
    chex.assert_trees_all_equal(scores, jnp.array([[[22.0]]], jnp.float32))


def test_score_head_starts_as_published():
    hidden = jnp.zeros((1, 1, 3999))
    params: Any = ScoreHead(4).init(jax.random.key(0), hidden)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "kernel": (3999, 4),
        "bias": (4,),
        "gain": (),
        "offset": (),
    }
    # 16,000 draws: the deviation is within 2 % of 1/√(3999+1) at 3.6 σ.
    np.testing.assert_allclose(np.std(params["kernel"]), 4000**-0.5, rtol=0.02)
    assert (params["bias"] == 0).all()
    assert params["gain"] == 1 and params["offset"] == 0


def test_normalised_scores_have_mean_0_and_deviation_1(config):
    params = randomize(init_params(ScoreModel(config), key=jax.random.key(0)))
    batch = batch_of([[1] * 8] * 32)
    score = jax.jit(lambda p: score_apply(config)(p, batch)[:, -1, 0])
    head = params["score_head"] | {"gain": jnp.array(1.0), "offset": jnp.array(0.0)}
    raw = score(params | {"score_head": head})
    gain = 1 / raw.std()
    head = head | {"gain": gain, "offset": -gain * raw.mean()}
    normalised = score(params | {"score_head": head})
    np.testing.assert_allclose(normalised.mean(), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_start_at_zero_and_learn(config, dtype):
    config = dataclasses.replace(config, dtype=dtype)
    params = init_params(ActorCritic(config), key=jax.random.key(0))

    def total(params) -> tuple[Any, Any]:
        values: Any = actor_critic_apply(config)(params, batch_of(BATCH)).values
        return values.sum(), values

    grads, values = jax.jit(jax.grad(total, has_aux=True))(params)
    chex.assert_trees_all_equal(values, jnp.zeros((2, 4), jnp.float32))
    assert jnp.abs(grads["value_head"]["kernel"]).max() > 0


def test_actor_critic_is_the_policy_with_a_value(config, forward, params):
    batch = batch_of(BATCH)
    both = randomize(init_params(ActorCritic(config), key=jax.random.key(0)))
    both = both | params
    apply_fn = jax.jit(actor_critic_apply(config), static_argnames="cache_size")
    output = apply_fn(both, batch, cache_size=6)
    policy = forward(params, batch, cache_size=6)
    chex.assert_trees_all_close(output._replace(values=None), policy, atol=1e-5)
    hidden, _ = jax.jit(Transformer(config).apply)({"params": params["trunk"]}, batch)
    head = both["value_head"]
    expected = hidden @ head["kernel"][:, 0] + head["bias"][0]
    real = batch.segment_ids > 0
    assert output.values is not None
    chex.assert_trees_all_close(output.values[real], expected[real], atol=1e-5)


def test_separate_critic_reads_whole_batches_only(config, forward, params):
    critic_config = dataclasses.replace(config, n_layers=1, d_model=8)
    critic = randomize(init_params(ScoreModel(critic_config), key=jax.random.key(0)))
    apply_fn = separate_critic_apply(config, critic_config)
    apply_fn = jax.jit(apply_fn, static_argnames="cache_size")
    both, batch = {"policy": params, "critic": critic}, batch_of(BATCH)
    output = apply_fn(both, batch)
    expected = forward(params, batch).logits
    chex.assert_trees_all_close(output.logits, expected, atol=1e-5)
    expected = jax.jit(score_apply(critic_config))(critic, batch)[:, :, 0]
    chex.assert_trees_all_close(output.values, expected, atol=1e-5)
    prefill = apply_fn(both, batch, cache_size=5)
    assert prefill.values is None
    token = jax.tree.map(lambda x: x[:, -1:], batch)
    assert apply_fn(both, token, cache=prefill.cache).values is None


def test_score_model_starts_from_the_policy(config, params):
    score = init_params(ScoreModel(config, 2), key=jax.random.key(0))
    started = score_params_from_policy(params, score)
    assert sorted(started) == ["score_head", "trunk"]
    chex.assert_trees_all_equal(started["trunk"], params["trunk"])
    chex.assert_trees_all_equal(started["score_head"], score["score_head"])
    score_fn = jax.jit(score_apply(config, num_outputs=2))
    scores = score_fn(started, batch_of(BATCH))
    assert scores.shape == (2, 4, 2) and scores.dtype == jnp.float32


def test_another_trunk_is_refused_by_name(config, params):
    other = dataclasses.replace(config, d_ff=20)
    score = init_params(ScoreModel(other), key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"mlp.*down_proj.*\(2, 24, 16\).*\(2, 20, 16\)"
    ):
        score_params_from_policy(params, score)
