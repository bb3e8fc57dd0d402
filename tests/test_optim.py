"""Optimisers: the numbers that presets rely on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import optim
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params
from rlhf_jax.optim import OptimConfig, make_optimizer, make_tunable_optimizer
from rlhf_jax.steps import PPO_PRESETS, REWARD_PRESETS
from rlhf_jax.steps.state import tree_bytes

MOMENTS: Any = ("float32", "bfloat16", "factored")


def first_update(config: OptimConfig, grads: Any, params: Any) -> Any:
    tx = make_optimizer(config, 1)
    return tx.update(grads, tx.init(params), params)[0]


def test_adam_eps_is_outside_the_root_after_bias_correction():
    # First step: m̂ = g, √v̂ = |g|, so Δ = −lr·g/(|g| + ε) = −1 · 1e-5/2e-5 = −½.
    config = OptimConfig(1.0, "constant", eps=1e-5)
    update = first_update(config, jnp.float32(1e-5), jnp.float32(0))
    assert float(update) == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.parametrize("moments", MOMENTS)
def test_clipping_scales_the_global_norm(moments):
    # Norm 5 clipped to 1: (3, 4) → (.6, .8). Adam's first step is ±lr whatever the
    # size, unless ε is large: with ε = 1, Δ = g/(|g| + 1), or g/√(g² + 1) where the
    # second moment may be factored.
    config = OptimConfig(1.0, "constant", eps=1.0, max_grad_norm=1.0, moments=moments)
    grads = {"kernel": jnp.array([3.0, 4.0])}
    updates = first_update(config, grads, grads)
    expected = np.array([-0.6 / 1.6, -0.8 / 1.8])
    if moments == "factored":
        expected = np.array([-0.6 / 1.36**0.5, -0.8 / 1.64**0.5])
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


def test_a_factored_moment_is_a_product_of_means(monkeypatch):
    # g² = [[1, 4], [9, 16]]: rows 2.5, 12.5, columns 5, 10, all 7.5.
    # v = [[2.5·5, 2.5·10], [12.5·5, 12.5·10]] / 7.5, Δ = −g / √v.
    monkeypatch.setattr(optim, "LEAST_FACTORED", 2)
    config = OptimConfig(1.0, "constant", moments="factored")
    grads = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    updates = first_update(config, grads, grads)
    second = np.array([[12.5, 25.0], [62.5, 125.0]]) / 7.5
    np.testing.assert_allclose(
        updates["kernel"], -grads["kernel"] / np.sqrt(second), rtol=1e-5
    )


def updates_of(tx, count=6):
    """In turn, for a vector that no moments factor."""
    params, found = {"scale": jnp.ones(4)}, []
    state = tx.init(params)
    for grads in np.random.default_rng(0).normal(size=(count, 4)):
        update, state = tx.update({"scale": jnp.float32(grads)}, state, params)
        found.append(update["scale"])
    return jnp.stack(found)


def test_decays_are_adams_whatever_the_moments():
    """Without factors and first moment it is Adam; with b2 = 0 a mean of signs."""
    config = lambda **options: OptimConfig(1.0, "constant", eps=1e-12, **options)
    adam, factored = (
        updates_of(make_optimizer(config(b1=0.0, b2=0.9, moments=moments), 6))
        for moments in ("float32", "factored")
    )
    np.testing.assert_allclose(factored, adam, rtol=1e-4)
    tx = make_optimizer(config(b1=0.5, b2=0.0, moments="factored"), 6)
    signs = np.sign(np.random.default_rng(0).normal(size=(6, 4)))
    lags = np.subtract.outer(np.arange(6), np.arange(6))
    weights = np.where(lags >= 0, 0.5**lags, 0)
    expected = -weights @ signs / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(updates_of(tx), expected, atol=1e-2)  # bfloat16


def test_a_narrow_first_moment_is_nearly_adams():
    adam, narrow = (
        updates_of(make_optimizer(OptimConfig(1.0, "constant", moments=moments), 6))
        for moments in ("float32", "bfloat16")
    )
    np.testing.assert_array_equal(narrow[0], adam[0])  # kept narrow, not computed so
    assert 1e-6 < np.abs(narrow - adam).max() < 1e-2


@pytest.mark.parametrize("moments", MOMENTS)
def test_a_rate_in_the_state_is_that_of_the_config(moments):
    config = OptimConfig(0.01, "cosine", 2, weight_decay=0.1, moments=moments)
    expected = updates_of(make_optimizer(config, 6))
    found = updates_of(make_tunable_optimizer(config, 6))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    state = make_tunable_optimizer(config, 6).init({"scale": jnp.ones(4)})
    assert optax.tree.get(state, "learning_rate") == pytest.approx(0.01)


@pytest.mark.parametrize(
    "options, least",
    [
        ({"moments": "float32"}, 8),
        ({"moments": "bfloat16"}, 6),
        ({"moments": "factored"}, 2),
        ({"moments": "factored", "b1": 0.0}, 0),
    ],
    ids=str,
)
def test_bytes_of_a_parameter(options, least):
    model = TransformerConfig(
        vocab_size=512,
        d_model=256,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_head=64,
        d_ff=256,
        max_length=8,
    )
    init = lambda key: init_params(CausalLM(model), key=key)
    params = jax.eval_shape(init, jax.random.key(0))
    state = jax.eval_shape(make_optimizer(OptimConfig(**options), 1).init, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert least <= tree_bytes(state) / count < least + 0.05


@pytest.mark.parametrize("moments", MOMENTS)
def test_weight_decay_spares_scales_and_biases(moments):
    config = OptimConfig(0.1, "constant", weight_decay=0.5, moments=moments)
    params = {
        "kernel": jnp.ones((2, 2)),
        "scale": jnp.ones((2, 2)),
        "bias": jnp.ones(2),
    }
    zero = {k: jnp.zeros_like(v) for k, v in params.items()}
    updates = first_update(config, zero, params)
    assert {k: float(v.ravel()[0]) for k, v in updates.items()} == pytest.approx(
        {"kernel": -0.05, "scale": 0.0, "bias": 0.0}
    )


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": -1.0}, {"warmup": -1}, {"max_grad_norm": 0.0}]
)
def test_impossible_settings_name_the_option(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimConfig(**wrong)


def test_presets_hold_the_papers_numbers():
    a, b = PPO_PRESETS["ziegler2019"], PPO_PRESETS["stiennon2020"]
    for preset in (a, b):
        assert preset.episodes == 1_000_000 and preset.batch_size == 512
        assert preset.algorithm.epochs == 4 and preset.algorithm.minibatches == 1
        assert preset.algorithm.sampling.temperature == 0.7
        assert preset.algorithm.gamma == 1.0 and preset.algorithm.lam == 0.95
        assert preset.algorithm.clip_eps == preset.algorithm.value_clip_eps == 0.2
        assert preset.algorithm.value_coef == 0.1
        assert preset.algorithm.missing_stop == "replace"
        assert preset.algorithm.missing_stop_score == -1.0
        assert preset.optim.eps == 1e-5 and preset.optim.weight_decay == 0.0
        assert preset.optim.max_grad_norm is None
        assert preset.optim.schedule == "linear"
    assert (a.prompt_length, a.algorithm.sampling.max_new_tokens) == (64, 24)
    assert (b.prompt_length, b.algorithm.sampling.max_new_tokens) == (512, 53)
    assert (a.stop_text, a.algorithm.sampling.stop_after) == (".", 16)
    assert (b.stop_text, b.algorithm.sampling.stop_after) == (None, 0)
    assert (a.algorithm.kl.coef, a.algorithm.kl.target, a.algorithm.kl.horizon) == (
        0.15,
        6.0,
        10_000,
    )
    assert (b.algorithm.kl.coef, b.algorithm.kl.target) == (0.05, None)
    assert a.algorithm.whiten_rewards and not b.algorithm.whiten_rewards
    assert (a.critic, b.critic) == ("head", "reward")
    assert (a.optim.learning_rate, b.optim.learning_rate) == (1e-5, 3e-6)
    a, b = REWARD_PRESETS["ziegler2019"], REWARD_PRESETS["stiennon2020"]
    assert (a.kind, b.kind) == ("choice", "pairwise")
    assert (a.optim.learning_rate, b.optim.learning_rate) == (5e-5, 3e-6)
    assert (a.optim.schedule, b.optim.schedule) == ("linear", "cosine")
    assert a.epochs == b.epochs == 1
