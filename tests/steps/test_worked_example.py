"""The algorithm that docs/algorithms/extend.md adds: it is short, and it learns."""

import dataclasses
import importlib.util
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import POLICY_PRESETS, create_state, sample_step

FILE = Path(__file__).parents[2] / "docs" / "algorithms" / "raft_pp.py"
CONFIG = POLICY_PRESETS["gpg"](SamplingConfig(max_new_tokens=1, completions=4))
WORTH = jnp.array([0.1, 0.9, -0.3, 0.4, 0.0, -1.0])


@pytest.fixture(scope="module")
def raft_pp_step():
    spec = importlib.util.spec_from_file_location("raft_pp", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.raft_pp_step


def drawn(params, key):
    prompts = token_batch(jnp.zeros((64, 1)))
    rollout = sample_step(
        params,
        prompts,
        jnp.arange(64),
        key=key,
        apply_fn=tabular_policy,
        config=CONFIG.sampling,
    )
    return rollout, WORTH[rollout.batch.tokens[:, -1]]


def test_it_has_at_most_forty_lines():
    assert len(FILE.read_text().splitlines()) <= 40


def test_it_learns_the_best_answer(raft_pp_step):
    params = tabular_params(jax.random.key(0), 6)
    state = create_state(tabular_policy, params, optax.adam(0.1))

    @jax.jit
    def iterate(state, key):
        rollout, scores = drawn(state.params, key)
        return raft_pp_step(state, rollout, scores, config=CONFIG)[0]

    before = jax.nn.softmax(params["logits"][0])
    for key in jax.random.split(jax.random.key(1), 30):
        state = iterate(state, key)
    after = jax.nn.softmax(state.params["logits"][0])
    assert before[1] < 0.5 and after[1] > 0.9


def test_the_others_of_a_group_have_no_part(raft_pp_step):
    params = tabular_params(jax.random.key(0), 6)
    state = create_state(tabular_policy, params, optax.sgd(1.0))
    rollout, scores = drawn(params, jax.random.key(2))
    groups = scores.reshape(-1, 4)
    best = (groups == groups.max(axis=1, keepdims=True)).reshape(-1)
    logprobs = jnp.where(best[:, None], rollout.logprobs, jnp.nan)
    spoilt = dataclasses.replace(rollout, logprobs=logprobs)
    found, expected = (
        raft_pp_step(state, each, scores, config=CONFIG)[0].params
        for each in (spoilt, rollout)
    )
    chex.assert_trees_all_equal(found, expected)
    assert not bool(best.all())
