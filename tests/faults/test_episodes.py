"""Responses that are empty, end at once or never; padding and garbage around them."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.data import Demonstration, Preference
from rlhf_jax.data.batching import collate_demonstrations, collate_preferences
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    PolicyConfig,
    PreferenceConfig,
    create_policy_state,
    create_state,
    experience_step,
    policy_step,
    preference_step,
    sample_step,
    sft_step,
)

VOCAB, ROWS, NEW, END = 6, 8, 4, 5
KINDS = ("ppo", "grpo")


def config_of(kind: str, **changes: Any) -> PolicyConfig:
    sampling = SamplingConfig(
        max_new_tokens=NEW, stop_ids=(END,), completions=1 if kind == "ppo" else 2
    )
    changes = {"minibatches": 1, "whiten_advantages": False} | changes
    return dataclasses.replace(POLICY_PRESETS[kind](sampling), **changes)


def learned(config: PolicyConfig, logits_of_end: float, prompts=None) -> Any:
    """(state before, experience, its metrics, state after, metrics of the update)."""
    params = tabular_params(jax.random.key(1), VOCAB)
    params["logits"] = params["logits"].at[:, END].set(logits_of_end)
    state = create_policy_state(
        tabular_policy, params, optax.sgd(0.1), kl_coef=config.kl.coef
    )
    count = ROWS // config.sampling.completions
    if prompts is None:
        prompts = token_batch([[1, 2]] * count)
    rollout = sample_step(
        params,
        prompts,
        jnp.arange(count),
        key=jax.random.key(2),
        apply_fn=tabular_policy,
        config=config.sampling,
    )
    scores = jnp.arange(1.0, ROWS + 1)
    experience, told = experience_step(
        state, params, rollout, scores, ref_apply_fn=tabular_policy, config=config
    )
    after, found = policy_step(state, experience, key=jax.random.key(3), config=config)
    chex.assert_tree_all_finite((after.params, found.compute()))
    return state, experience, told.compute(), after, found.compute()


@pytest.mark.fault(17)
@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_alone_has_the_score(kind):
    """All responses are the end token and nothing else."""
    config = config_of(kind, kl=KLConfig(coef=0.0))
    before, experience, told, after, found = learned(config, logits_of_end=100.0)
    batch = experience.rollout.batch
    assert batch.mask.tolist() == [[False, False, True, False, False, False]] * ROWS
    assert batch.tokens[:, 2].tolist() == [END] * ROWS
    assert told["rollout/ended"] == 1 and told["rollout/response_length"] == 1
    assert not experience.rollout.truncated.any()
    if experience.rewards is not None and kind == "ppo":
        assert experience.rewards.sum(axis=1).tolist() == [*range(1, ROWS + 1)]
        assert experience.rewards[:, 2].tolist() == [*range(1, ROWS + 1)]


@pytest.mark.fault(17)
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_response_teaches_nothing(kind):
    """Filler rows without a prompt: what the others teach is as without them."""
    config = config_of(kind, kl=KLConfig(coef=0.0))
    count = ROWS // config.sampling.completions
    real = [[1, 1]] * (count // 2) + [[0, 0]] * (count // 2)
    prompts = token_batch([[1, 2]] * count, real=real)
    _, experience, _, after, _ = learned(config, 0.0, prompts)
    mask = np.asarray(experience.rollout.batch.mask)
    assert mask[: ROWS // 2].any(axis=1).all() and not mask[ROWS // 2 :].any()
    assert (np.asarray(experience.advantages)[~mask] == 0).all()


@pytest.mark.fault(18)
@pytest.mark.parametrize("kind", KINDS)
def test_without_an_end_token_the_penalty_fires_on_the_last_real_token(kind):
    """None is forged: the budget is spent on what the policy drew."""
    rules = {"kl": KLConfig(coef=0.0), "missing_stop": "replace"}
    config = config_of(kind, missing_stop_score=-3.0, **rules)
    _, experience, told, _, _ = learned(config, logits_of_end=-100.0)
    rollout = experience.rollout
    assert rollout.truncated.all() and told["rollout/ended"] == 0
    assert not (rollout.batch.tokens == END).any()
    assert rollout.batch.mask[:, 2:].all()
    assert told["objective/score"] == -3
    if kind == "ppo":
        assert experience.rewards.tolist() == [[0.0] * (NEW + 1) + [-3.0]] * ROWS


MODEL = TransformerConfig(
    vocab_size=32,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    d_head=8,
    d_ff=24,
    max_length=32,
)
APPLY = policy_apply(MODEL)
EXAMPLES = [
    Demonstration((1, 7, 8), (9, 10, 2)),
    Demonstration((1,), (5, 2)),
    Demonstration((1, 4, 4, 4), (6, 6, 6, 2)),
]
PAIRS = [Preference(e.prompt, e.completion, (11, 12, 2)) for e in EXAMPLES]


@functools.cache
def network() -> Any:
    return init_params(CausalLM(MODEL), key=jax.random.key(0))


def garbage(tokens: Any, like: Any, number: int) -> Any:
    """The batch with any number in its padding."""
    real = np.asarray(like.segment_ids) > 0
    return dataclasses.replace(like, tokens=np.where(real, tokens, number))


def dirty(batch: Any, number: int) -> Any:
    if hasattr(batch, "chosen"):
        sides = {n: dirty(getattr(batch, n), number) for n in ("chosen", "rejected")}
        return dataclasses.replace(batch, **sides)
    return garbage(batch.tokens, batch, number)


def imitation(batch: Any) -> Any:
    state = create_state(APPLY, network(), optax.sgd(0.1))
    after, metrics = jax.jit(sft_step)(state, batch)
    return after.params, metrics.compute()


def comparison(batch: Any) -> Any:
    state = create_state(APPLY, network(), optax.sgd(0.1))
    step = functools.partial(
        preference_step, ref_apply_fn=APPLY, config=PreferenceConfig()
    )
    after, metrics = jax.jit(step)(state, batch, network())
    return after.params, metrics.compute()


STEPS = [
    (imitation, collate_demonstrations, EXAMPLES),
    (comparison, collate_preferences, PAIRS),
]


@pytest.mark.fault(20)
@pytest.mark.parametrize("step, collate, examples", STEPS)
def test_losses_and_updates_do_not_see_the_padding(step, collate, examples):
    """Garbage changes nothing, exactly; columns of padding less than 1e-6."""
    narrow = collate(examples, length=8, pad_id=0)
    expected = step(narrow)
    for number in (31, 2):  # another token, and the end token
        chex.assert_trees_all_equal(step(dirty(narrow, number)), expected)
    wide = step(collate(examples, length=19, pad_id=2))
    chex.assert_trees_all_close(wide, expected, atol=1e-6, rtol=0)
    assert any(abs(value) > 1e-3 for value in expected[1].values())


@pytest.mark.fault(17)
def test_a_batch_without_a_token_to_learn():
    batch = collate_demonstrations(EXAMPLES, length=8, pad_id=0)
    empty = dataclasses.replace(batch, mask=np.zeros_like(batch.mask))
    params, metrics = imitation(empty)
    chex.assert_trees_all_equal(params, network())
    assert metrics["optim/grad_norm"] == 0
    assert math.isnan(metrics["sft/loss"])  # the mean over no token is none


@pytest.mark.fault(17)
def test_pairs_without_weight():
    batch = collate_preferences(PAIRS, length=8, pad_id=0)
    empty = dataclasses.replace(batch, weight=np.zeros_like(batch.weight))
    params, metrics = comparison(empty)
    chex.assert_trees_all_equal(params, network())
    assert metrics["optim/grad_norm"] == 0
