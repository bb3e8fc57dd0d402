"""The expected reward over all responses that are probable enough to be listed."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.asking import AskConfig
from experiments.networks import told_columns
from experiments.rollouts import make_scorer
from rlhf_jax.data import Prompt, batches, right_padded
from rlhf_jax.data.records import TokenIds
from rlhf_jax.evaluation import (
    ExactReward,
    enumerate_responses,
    exact_expected_reward,
)
from rlhf_jax.models import policy_apply
from rlhf_jax.parallel import local_devices, replicate, shard, unshard
from rlhf_jax.rewards import RewardFunction
from rlhf_jax.stages import Stage
from rlhf_jax.types import Rollout, TokenBatch

ROWS = 64  # responses at a time


def exact_reward(
    config: AskConfig,
    prompts: list[Prompt[TokenIds]],
    policy: Stage,
    reward: Stage | RewardFunction,
    *,
    least: float,
) -> ExactReward:
    """Value and mass of each prompt, over responses as probable as ``least``."""
    devices, ids = local_devices(config.devices), [p.prompt for p in prompts]
    options = {"config": config.sampling, "least": least}
    apply_fn = policy_apply(policy.model)
    listed = enumerate_responses(apply_fn, policy.params, ids, **options)
    judge = replicate(reward.whole(), devices) if isinstance(reward, Stage) else None
    told = told_columns(reward, prompts, policy.tokenizer)
    kind = config.reward_kind
    score = make_scorer(told, judge, kind, policy.tokenizer, devices)
    length = config.prompt_length + config.sampling.max_new_tokens
    pad = config.sampling.pad_id
    collate = functools.partial(_collate, length=length, pad_id=pad)
    flat = [(x, y.ids) for x, own in zip(ids, listed, strict=True) for y in own]
    scores = [
        np.asarray(unshard(score(shard(_as_rollout(batch), devices))))[real]
        for batch, real in batches(flat, ROWS * len(devices), collate)
    ]
    flat_scores = iter(np.concatenate(scores).tolist() if scores else [])
    shape = len(listed), max(map(len, listed), default=0)
    logprobs, rewards, there = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for i, own in enumerate(listed):
        logprobs[i, : len(own)] = [y.logprob for y in own]
        rewards[i, : len(own)] = [next(flat_scores) for _ in own]
        there[i, : len(own)] = True
    return exact_expected_reward(logprobs, rewards, there)


def _collate(
    rows: Sequence[tuple[TokenIds, TokenIds]], *, length: int, pad_id: int
) -> TokenBatch:
    prompts, responses = [x for x, _ in rows], [y for _, y in rows]
    return right_padded(prompts, responses, length=length, pad_id=pad_id)


def _as_rollout(batch: TokenBatch) -> Rollout:
    """For what scores rollouts: it looks at the tokens alone."""
    blank: Any = np.zeros(batch.tokens.shape, np.float32)
    none: Any = np.zeros(len(batch.tokens), np.int32)
    return Rollout(batch, blank, none > 0, none, blank, blank)
