"""Optimisers: the numbers that presets rely on."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.steps import PPO_PRESETS, REWARD_PRESETS


def first_update(config: OptimConfig, grads: Any, params: Any) -> Any:
    tx = make_optimizer(config, 1)
    return tx.update(grads, tx.init(params), params)[0]


def test_adam_eps_is_outside_the_root_after_bias_correction():
    # First step: m̂ = g, √v̂ = |g|, so Δ = −lr·g/(|g| + ε) = −1 · 1e-5/2e-5 = −½.
    config = OptimConfig(1.0, "constant", eps=1e-5)
    update = first_update(config, jnp.float32(1e-5), jnp.float32(0))
    assert float(update) == pytest.approx(-0.5, rel=1e-5)


def test_clipping_scales_the_global_norm():
    # Norm 5 clipped to 1: (3, 4) → (.6, .8). Adam's first step is ±lr whatever the
    # size, unless ε is large: with ε = 1, Δ = g/(|g| + 1).
    config = OptimConfig(1.0, "constant", eps=1.0, max_grad_norm=1.0)
    grads = {"kernel": jnp.array([3.0, 4.0])}
    updates = first_update(config, grads, grads)
    np.testing.assert_allclose(updates["kernel"], [-0.6 / 1.6, -0.8 / 1.8], rtol=1e-5)


def test_weight_decay_spares_scales_and_biases():
    config = OptimConfig(0.1, "constant", weight_decay=0.5)
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
        assert preset.ppo.epochs == 4 and preset.ppo.minibatches == 1
        assert preset.ppo.sampling.temperature == 0.7
        assert preset.ppo.gamma == 1.0 and preset.ppo.lam == 0.95
        assert preset.ppo.clip_eps == preset.ppo.value_clip_eps == 0.2
        assert preset.ppo.value_coef == 0.1
        assert preset.ppo.missing_stop == "replace"
        assert preset.ppo.missing_stop_score == -1.0
        assert preset.optim.eps == 1e-5 and preset.optim.weight_decay == 0.0
        assert preset.optim.max_grad_norm is None
        assert preset.optim.schedule == "linear"
    assert (a.prompt_length, a.ppo.sampling.max_new_tokens) == (64, 24)
    assert (b.prompt_length, b.ppo.sampling.max_new_tokens) == (512, 53)
    assert (a.stop_text, a.ppo.sampling.stop_after) == (".", 16)
    assert (b.stop_text, b.ppo.sampling.stop_after) == (None, 0)
    assert (a.ppo.kl.coef, a.ppo.kl.target, a.ppo.kl.horizon) == (0.15, 6.0, 10_000)
    assert (b.ppo.kl.coef, b.ppo.kl.target) == (0.05, None)
    assert a.ppo.whiten_rewards and not b.ppo.whiten_rewards
    assert (a.critic, b.critic) == ("head", "reward")
    assert (a.optim.learning_rate, b.optim.learning_rate) == (1e-5, 3e-6)
    a, b = REWARD_PRESETS["ziegler2019"], REWARD_PRESETS["stiennon2020"]
    assert (a.kind, b.kind) == ("choice", "pairwise")
    assert (a.optim.learning_rate, b.optim.learning_rate) == (5e-5, 3e-6)
    assert (a.optim.schedule, b.optim.schedule) == ("linear", "cosine")
    assert a.epochs == b.epochs == 1
