"""A step, state and batch of every algorithm, for tests that cut batches into parts."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit, randomize
from toys import tabular_params, tabular_policy, tabular_score

from rlhf_jax.data import (
    Demonstration,
    Preference,
    collate_demonstrations,
    collate_packed,
    collate_packed_preferences,
    collate_preferences,
    pack,
    pack_experience,
)
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
from rlhf_jax.steps import (
    POLICY_PRESETS,
    PreferenceConfig,
    create_policy_state,
    create_state,
    pairwise_terms,
    policy_step,
    preference_step,
    ranking_terms,
    reward_step,
    sft_step,
)
from rlhf_jax.types import Experience, Rollout

VOCAB, ROWS, LENGTH, WIDTH = 24, 16, 8, 16  # WIDTH of packed rows, of which there are 8
KINDS = ("sft", "reward", "dpo", "ppo", "grpo")
RELATIVES = ("gspo", "dr_grpo", "gpg")  # a response's ratio, a constant, no ratio
MODEL = TransformerConfig(
    vocab_size=VOCAB,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=4,
    d_ff=24,
    max_length=WIDTH,
)
ROLES = {
    "policy": (CausalLM, policy_apply),
    "critic": (ActorCritic, actor_critic_apply),
    "score": (ScoreModel, score_apply),
}


@functools.cache
def network(role, *, table, seed=1) -> tuple[Any, Any]:
    """(apply_fn, params), a table's or a transformer's."""
    if table and role == "score":
        return tabular_score, {"scores": numbers(9, VOCAB, 1)}
    if table:
        return tabular_policy, tabular_params(jax.random.key(seed), VOCAB)
    module, apply = ROLES[role]
    init = quick_jit(lambda key: init_params(module(MODEL), key=key))
    return apply(MODEL), randomize(init(jax.random.key(seed)))


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def texts(seed, least, most):
    """Ragged ones, the same number whatever their lengths."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, VOCAB, (ROWS, LENGTH)).tolist()
    sizes = rng.integers(least, most + 1, ROWS)
    return [tuple(ids[:n]) for ids, n in zip(drawn, sizes, strict=True)]


def demonstrations(seed=0):
    """The first quarter, a micro-batch and a device's part, has nothing to learn."""
    completions = texts(seed + 1, 0, 5)
    completions[: ROWS // 4] = [()] * (ROWS // 4)
    return [
        Demonstration(prompt, completion)
        for prompt, completion in zip(texts(0, 1, 3), completions, strict=True)
    ]


def rows(seed=0, *, packed=False) -> Any:
    examples = demonstrations(seed)
    if not packed:
        return collate_demonstrations(examples, length=LENGTH, pad_id=0)
    groups = filled(examples, [len(e.prompt + e.completion) for e in examples])
    return collate_packed(
        groups, collate=collate_demonstrations, length=WIDTH, pad_id=0
    )


def filled(examples, lengths) -> list:
    """Eight rows: the last ones, a device's part, are empty."""
    groups = pack(examples, lengths, width=WIDTH)
    assert ROWS // 4 < len(groups) < ROWS // 2
    return groups + [()] * (ROWS // 2 - len(groups))


def pairs(*, packed=False):
    """The first quarter has no weight."""
    both = zip(demonstrations(), demonstrations(1), strict=True)
    examples = [
        Preference(
            chosen.prompt,
            chosen.completion,
            rejected.completion,
            margin=i / 20,
            weight=i / 7 if i >= ROWS // 4 else 0.0,
        )
        for i, (chosen, rejected) in enumerate(both)
    ]
    if not packed:
        return collate_preferences(examples, length=LENGTH, pad_id=0)
    longer = [len(e.prompt) + max(len(e.chosen), len(e.rejected)) for e in examples]
    return collate_packed_preferences(
        filled(examples, longer), pairs=6, length=WIDTH, pad_id=0
    )


def rollout():
    """As `rows`, but padded on the left."""
    right = rows()
    shift = (right.segment_ids == 0).sum(axis=1)
    turn = lambda x: np.stack([np.roll(r, n) for r, n in zip(x, shift, strict=True)])
    logprobs = -3 + 0.1 * numbers(4, ROWS, LENGTH)
    return Rollout(
        batch=jax.tree.map(turn, right),
        logprobs=logprobs,
        truncated=jnp.zeros(ROWS, bool),
        row=jnp.arange(ROWS, dtype=jnp.int32),
        raw_logprobs=logprobs,
        processed_logprobs=logprobs,
    )


def experience(kind, *, packed=False):
    """PPO's, or of GRPO and its relatives; packed, in eight rows."""
    per_token = [numbers(seed, ROWS, LENGTH) for seed in range(5, 9)]
    scores = numbers(9, ROWS)
    critic = kind == "ppo"
    alone = Experience(
        rollout(),
        ref_logprobs=per_token[0] - 3,
        values=per_token[1] if critic else None,
        rewards=per_token[2],
        advantages=per_token[3],
        returns=per_token[2] if critic else None,
        scores=scores,
    )
    return pack_experience(alone, width=WIDTH, multiple=8) if packed else alone


def task(kind, parts=1, *, table=True, packed=False) -> tuple[Any, Any, Any]:
    """(step, state, batch); SGD at rate 1: a change of parameters is a gradient."""
    tx = optax.sgd(1.0, momentum=0.0)  # with a moment, as parameters are placed
    use = functools.partial(network, table=table)
    if kind == "sft":
        step = functools.partial(sft_step, micro_batches=parts)
        return step, create_state(*use("policy"), tx), rows(packed=packed)
    if kind in ("reward", "ranking"):
        terms_fn = pairwise_terms if kind == "reward" else ranking_terms
        ranks = np.array([[0, 1], [1, 0]] * (ROWS // 4), np.int32)
        judged = pairs(packed=packed) if kind == "reward" else (rows(), ranks)
        step = functools.partial(reward_step, terms_fn=terms_fn, micro_batches=parts)
        return step, create_state(*use("score"), tx), judged
    if kind == "dpo":
        ref_apply_fn, ref_params = use("policy", seed=2)
        step = functools.partial(
            preference_step,
            ref_params=ref_params,
            ref_apply_fn=ref_apply_fn,
            config=PreferenceConfig(micro_batches=parts),
        )
        return step, create_state(*use("policy"), tx), pairs(packed=packed)
    cuts: Any = {"epochs": 1, "minibatches": 1, "micro_batches": parts}
    numbers_of = POLICY_PRESETS[kind](SamplingConfig(5, completions=2))
    config = dataclasses.replace(numbers_of, **cuts)
    step = functools.partial(policy_step, config=config)
    role = "critic" if config.advantage == "gae" else "policy"
    state = create_policy_state(*use(role), tx, kl_coef=config.kl.coef)
    return (
        functools.partial(step, key=jax.random.key(3)),
        state,
        experience(kind, packed=packed),
    )


@functools.cache
def plain(kind, *, table=True):
    """(parameters, metrics) after an update of one batch on one device."""
    step, state, batch = task(kind, table=table)
    after, metrics = quick_jit(step)(state, batch)
    return after.params, metrics.compute()


def assert_same(found, expected, *, atol=1e-6):
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=atol)
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-5)
    assert found[1]["optim/grad_norm"] > 0.01
