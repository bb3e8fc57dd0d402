"""What a policy answers: texts, scores, experience, and how it is packed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.inputs import check_pack_length
from experiments.networks import Networks
from rlhf_jax.data import pack_experience
from rlhf_jax.models import score_apply
from rlhf_jax.parallel import Where, batch_parts, data_parallel, shard, unshard
from rlhf_jax.rewards import (
    RewardFunction,
    ScoreKind,
    call_reward_function,
    learned_reward,
)
from rlhf_jax.sampling import SamplingConfig, greedy
from rlhf_jax.stages import Stage
from rlhf_jax.steps import (
    PolicyConfig,
    PolicyState,
    experience_step,
    sample_step,
)
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Metrics,
    Params,
    Rollout,
    ScoreFn,
    TokenBatch,
)


def decode(tokenizer: Any, rollout: Rollout) -> tuple[list[str], list[str]]:
    """Texts of the prompts and of the responses, without special tokens."""
    batch = jax.device_get(rollout.batch)
    asked = (batch.segment_ids > 0) & ~batch.mask
    texts = lambda mask: tokenizer.batch_decode(
        [row[m].tolist() for row, m in zip(batch.tokens, mask, strict=True)],
        skip_special_tokens=True,
    )
    return texts(asked), texts(batch.mask)


def response_ids(rollout: Rollout) -> list[list[int]]:
    """Token ids of the responses, their end tokens among them."""
    batch = jax.device_get(rollout.batch)
    return [row[m].tolist() for row, m in zip(batch.tokens, batch.mask, strict=True)]


def gold_score(
    gold: RewardFunction | None, tokenizer: Any, rollout: Rollout
) -> dict[str, float]:
    """Mean score of a rollout by the truth, where it is known."""
    if gold is None:
        return {}
    texts = decode(tokenizer, unshard(rollout))
    return {"objective/gold": call_reward_function(gold, *texts).mean()}


def make_scorer(
    reward: Stage | RewardFunction,
    params: Params,
    kind: ScoreKind,
    tokenizer: Any,
    devices: Where,
    **calls: Any,
) -> Callable[[Rollout], Array]:
    """A function from a sharded rollout to its sharded scores [N, B/N].

    ``params`` are those of the reward model on every device; a function has none, and
    is called with the options ``calls`` of `call_reward_function`.
    """
    if not isinstance(reward, Stage):

        def score_texts(rollout: Rollout) -> Array:
            whole = unshard(rollout)
            columns = {"completion_ids": response_ids(whole)}
            asked = reward, *decode(tokenizer, whole), columns
            scores = call_reward_function(*asked, **calls)
            return shard(scores, devices)

        return score_texts

    score_fn = score_apply(reward.model, num_outputs=reward.num_outputs)
    step = functools.partial(
        score_step, score_fn=score_fn, kind=kind, label=reward.label
    )
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=0)
    return lambda rollout: mapped(params, rollout.batch)


def score_step(
    params,
    batch,
    *,
    score_fn: ScoreFn,
    kind: ScoreKind,
    label: int = 1,
    axis_name=None,
):
    """Scores of the learned reward; rows are independent of one another."""
    del axis_name
    return learned_reward(score_fn, params, batch, kind=kind, label=label)


class Drawn(NamedTuple):
    """Scored responses, on every device."""

    rollout: Rollout
    scores: Array  # [N, B/N]
    greedy_scores: Array | None  # [N, B/N] of the greedy responses, if asked for
    asked: Array | None = None  # [N, B/N] int32: which prompt of the data each answers


class Sampled(NamedTuple):
    """What an iteration has before its update, on every device."""

    rollout: Rollout
    scores: Array  # [N, B/N]
    experience: Any  # what an update learns from
    metrics: Metrics
    # [N, B/N, T] nats a token, of the policy and of the reference at one temperature,
    # which say what the KL is spent on; None: not kept.
    compared: tuple[Array, Array] | None = None


def make_draw(
    nets: Networks,
    algorithm: PolicyConfig,
    score: Callable[[Rollout], Array],
    frozen: Params | None,
    devices: Where,
    report: Callable[..., None] | None = None,
) -> Callable[[Params, TokenBatch, Array], Drawn]:
    """A function ``(params, prompts, key)``: samples and scores.

    The parameters are those on every device. ``report`` is told how a rollout goes on.
    """
    size = algorithm.sampling.completions
    policy = nets.sample_fn, nets.layout
    sample = make_sampler(*policy, algorithm.sampling, frozen, devices, report)
    greedily = make_sampler(*policy, greedy(algorithm.sampling), frozen, devices)

    def draw(params: Params, prompts: TokenBatch, key: Array) -> Drawn:
        rollout, best = sample(params, prompts, key), None
        if algorithm.advantage == "greedy":
            best = unshard(score(greedily(params, prompts, key)))
            best = shard(np.repeat(best, size), devices)
        return Drawn(rollout, score(rollout), best)

    return draw


def make_sampler(
    sample_fn: ApplyFn,
    layout: Callable[[Params], Params],
    config: SamplingConfig,
    frozen: Params | None,
    devices: Where,
    report: Callable[..., None] | None = None,
) -> Callable[[Params, TokenBatch, Array], Rollout]:
    """A function ``(params, prompts, key)``: `sample_step` on every device."""
    if isinstance(devices, Mesh) and config.slots is not None:  # those of each part
        n = batch_parts(devices)
        more = {"slots": n * config.slots, "read_ahead": n * config.read_ahead}
        config = dataclasses.replace(config, **more)
    step = functools.partial(
        sample_step,
        apply_fn=sample_fn,
        config=config,
        layout=layout,
        report=report,
    )
    step = data_parallel(step, devices, in_axes=(None, 0, 0, None), out_axes=0)

    def sample(params: Params, prompts: TokenBatch, key: Array) -> Rollout:
        rows = np.arange(prompts.tokens.shape[0], dtype=np.int32)
        return step(params, *shard((prompts, rows), devices), frozen, key=key)

    return sample


def make_compare(
    nets: Networks,
    algorithm: PolicyConfig,
    ref_params: Params,
    frozen: Params | None,
    devices: Where,
) -> Callable[[PolicyState, Drawn], Sampled]:
    """A function ``(state, drawn)``: compares with the reference, looks ahead.

    The parameters are those on every device.
    """
    step = functools.partial(
        experience_step, ref_apply_fn=nets.ref_apply_fn, config=algorithm
    )
    step = data_parallel(
        step, devices, in_axes=(None, None, 0, 0, None, 0), out_axes=(0, None)
    )

    def compare(state: PolicyState, drawn: Drawn) -> Sampled:
        rollout, scores, best, _ = drawn
        found = step(state, ref_params, rollout, scores, frozen, best)
        reference = found[0].ref_logprobs  # None where there is none
        both = None if reference is None else (rollout.logprobs, reference)
        return Sampled(rollout, scores, *found, compared=both)

    return compare


def make_packing(
    width: int | None,
    algorithm: PolicyConfig,
    episodes: int,
    length: int,
    context: int,
    devices: Where,
) -> Callable[[Any], Any]:
    """A function that lays a sharded batch's episodes into fewer rows, for the updates.

    An update is compiled for each number of rows: at most eight of them come about.

    Args:
      width: columns of a row that episodes share; None leaves each its own.
      algorithm: into how many parts the updates cut the rows.
      episodes: of a batch.
      length: tokens of an episode at most.
      context: most tokens of a row that the network takes.
      devices: that share the rows.

    Raises:
      UserError: a row does not hold the longest episode, or not fit the context.
    """
    if width is None:
        return lambda experience: experience
    check_pack_length(width, least=length, most=context)
    parts = batch_parts(devices) * algorithm.minibatches * algorithm.micro_batches
    most = math.ceil(episodes / (width // length))  # rows, all episodes at full length
    multiple = parts * math.ceil(most / (8 * parts))

    def pack(experience: Any) -> Any:
        packed = pack_experience(unshard(experience), width=width, multiple=multiple)
        return shard(packed, devices)

    return pack
