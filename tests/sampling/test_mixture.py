"""A mixture is sampled like any policy: its caches hold what both have read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import quick_jit, randomize
from sampling.scripted import prompts_of
from sampling.test_slots import ROTARY
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, init_params, policy_apply
from rlhf_jax.ops import token_logprobs
from rlhf_jax.sampling import SamplingConfig, generate, mixture_apply

OTHER = dataclasses.replace(ROTARY, n_kv_heads=4, window=3)  # not the same network
MIXED = mixture_apply(policy_apply(ROTARY), policy_apply(OTHER), alpha=0.3)
PLAIN = SamplingConfig(6, temperature=0.8, stop_ids=(3, 5, 11), pad_id=5)


@pytest.fixture(scope="module")
def params():
    models = {"policy": ROTARY, "reference": OTHER}
    init = lambda key, model: init_params(CausalLM(model), key=key)
    init = quick_jit(init, static_argnames="model")
    key = jax.random.key(1)
    return {name: randomize(init(key, model)) for name, model in models.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"completions": 2, "stages": 2},  # share, widen
        {"completions": 2, "stages": 2, "slots": 4},  # repeat, insert, take
    ],
    ids=["shared", "slots"],
)
def test_logprobs_are_those_of_the_mixture_s_whole_forward(params, key, changes):
    prompts = prompts_of([[0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    config = dataclasses.replace(PLAIN, **changes)
    draw = quick_jit(generate, static_argnums=0, static_argnames="config")
    rollout = draw(MIXED, params, prompts, key=key, config=config)
    logits = quick_jit(MIXED)(params, rollout.batch).logits
    expected = token_logprobs(logits, rollout.batch.tokens, temperature=0.8)
    assert rollout.batch.mask.sum() > 10
    np.testing.assert_allclose(
        rollout.logprobs, jnp.where(rollout.batch.mask, expected, 0), atol=1e-5
    )


def test_draws_follow_the_geometric_mean(key):
    ours, theirs = (tabular_params(jax.random.key(i), 4) for i in (1, 2))
    log_p, log_q = (jax.nn.log_softmax(x["logits"][0]) for x in (ours, theirs))
    expected = jax.nn.softmax(0.5 * log_p + 0.5 * log_q)
    mixed = mixture_apply(tabular_policy, tabular_policy, alpha=0.5)
    rollout = jax.jit(generate, static_argnums=0, static_argnames="config")(
        mixed,
        {"policy": ours, "reference": theirs},
        token_batch(jnp.zeros((8_000, 1))),
        key=key,
        config=SamplingConfig(1),
    )
    share = np.bincount(rollout.batch.tokens[:, 1], minlength=4) / 8_000
    apart = lambda p: 0.5 * np.abs(share - p).sum()
    assert apart(expected) < 0.02
    assert min(apart(jnp.exp(log_p)), apart(jnp.exp(log_q))) > 0.08


def test_the_share_of_the_reference_is_checked():
    with pytest.raises(UserError, match="mixture = 1.5: expected 0 "):
        mixture_apply(tabular_policy, tabular_policy, alpha=1.5)
