"""What PPO is put together from: networks, stop tokens, scores, texts, evaluation."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments.runs import PretrainedConfig, split_params
from experiments.stages import Stage, choose_label, load_stage
from rlhf_jax.errors import UserError
from rlhf_jax.models import (
    ActorCritic,
    CacheDType,
    ScoreModel,
    actor_critic_apply,
    decode_layout,
    init_head,
    lora,
    policy_apply,
    score_apply,
    separate_critic_apply,
)
from rlhf_jax.parallel import Devices, data_parallel, shard, unshard
from rlhf_jax.rewards import (
    RewardFunction,
    ScoreKind,
    call_reward_function,
    learned_reward,
    load_reward_function,
)
from rlhf_jax.steps import PolicyState, PPOConfig, experience_step, sample_step
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Experience,
    Metrics,
    Params,
    Rollout,
    ScoreFn,
    TokenBatch,
)


class Networks(NamedTuple):
    """Policy and critic under training, and the reference."""

    apply_fn: ApplyFn
    ref_apply_fn: ApplyFn
    sample_fn: ApplyFn  # the policy alone, with the cache that sampling is to have
    layout: Callable[[Params], Params]  # of ``params``: those of ``sample_fn``
    params: Params  # of policy and critic, as far as they are trained
    frozen: Params | None  # the rest of them
    params_path: str  # of the policy within a checkpoint of the state


def load_reward(
    reward: str,
    kind: ScoreKind,
    policy: Stage,
    pretrained: PretrainedConfig,
    label: str | None = None,
) -> Stage | RewardFunction:
    """A reward model that reads the policy's tokens, or a function of texts.

    Adapters that were trained on this policy share its arrays. ``label`` says which
    output of a classifier is the reward; our own have bad and good.
    """
    if ":" in reward:
        return load_reward_function(reward)
    judge = load_stage(
        Path(reward), "reward", option="--reward", pretrained=pretrained, base=policy
    )
    if judge.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            f"--reward {reward}: its tokenizer is not the policy's; train the reward "
            "model with --policy, so that both read the same tokens"
        )
    if (judge.num_outputs == 1) != (kind == "score"):
        raise UserError(
            f"--reward-kind {kind}: the reward model {reward} has {judge.num_outputs} "
            f"outputs, expected {'1' if kind == 'score' else '2 or more'}; a scalar "
            "model's reward is its score, a classifier's its logit or probability"
        )
    return judge if kind == "score" else choose_label(judge, label)


def make_networks(
    policy: Stage,
    reward: Stage | RewardFunction,
    critic: Literal["reward", "head"],
    *,
    adapters: lora.LoraConfig | None,
    cache_dtype: CacheDType | None,
    key: Array,
) -> Networks:
    """The policy with the critic that is asked for; with adapters, they are trained."""
    ref_apply_fn = policy_apply(policy.model)
    sample_fn = policy_apply(dataclasses.replace(policy.model, cache_dtype=cache_dtype))
    trained, frozen = split_params(policy.params, adapters, key=key)
    if critic == "head":
        head = init_head(ActorCritic(policy.model), "value_head", key=key)
        params = trained | {"value_head": head}
        apply_fn = actor_critic_apply(policy.model)
        return Networks(
            apply_fn, ref_apply_fn, sample_fn, decode_layout, params, frozen, "params"
        )
    if not isinstance(reward, Stage):
        raise UserError(
            "--critic reward: the reward is a function, there is no network to start a "
            "critic from; use --critic head"
        )
    judge, judge_frozen = critic_params(reward, adapters, key=key)
    apply_fn = separate_critic_apply(policy.model, reward.model)
    return Networks(
        apply_fn,
        ref_apply_fn,
        sample_fn,
        layout=lambda params: decode_layout(params["policy"]),
        params={"policy": trained, "critic": judge},
        frozen=None if frozen is None else {"policy": frozen, "critic": judge_frozen},
        params_path="params/policy",
    )


def critic_params(
    judge: Stage, adapters: lora.LoraConfig | None, *, key: Array
) -> tuple[Params, Params | None]:
    """(trained, frozen) of a critic that starts as the reward model.

    A classifier's trunk gets a new, scalar head. A reward model that is adapters itself
    goes on with those; without adapters asked for, they are merged.
    """
    if adapters is not None and judge.adapters is not None and judge.lora is not None:
        trained, frozen = judge.adapters, lora.freeze(judge.params, judge.lora)
    else:
        if adapters is not None and adapters.targets is not None:  # there is no lm_head
            targets = tuple(t for t in adapters.targets if t != "lm_head")
            adapters = dataclasses.replace(adapters, targets=targets)
        trained, frozen = split_params(judge.merged().params, adapters, key=key)
    if judge.num_outputs > 1:
        head = init_head(ScoreModel(judge.model), "score_head", key=key)
        trained = trained | {"score_head": head}
    return trained, frozen


def stop_ids(policy: Stage, stop_text: str | None) -> tuple[int, ...]:
    """The end tokens, and those that spell ``stop_text``, white space aside."""
    tokenizer: Any = policy.tokenizer
    if stop_text is None:
        return policy.stop_ids
    spelled = [
        i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() == stop_text
    ]
    if not spelled:
        raise UserError(
            f"stop_text = {stop_text!r}: no token of the policy's tokenizer spells it; "
            "choose another text, or none for the end token alone"
        )
    return tuple(sorted({*policy.stop_ids, *spelled}))


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


def make_scorer(
    reward: Stage | RewardFunction,
    params: Params,
    kind: ScoreKind,
    tokenizer: Any,
    devices: Devices,
) -> Callable[[Rollout], Array]:
    """A function from a sharded rollout to its sharded scores [N, B/N].

    ``params`` are those of the reward model on every device; a function has none.
    """
    if not isinstance(reward, Stage):

        def score_texts(rollout: Rollout) -> Array:
            whole = unshard(rollout)
            columns = {"completion_ids": response_ids(whole)}
            scores = call_reward_function(reward, *decode(tokenizer, whole), columns)
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


class Sampled(NamedTuple):
    """What an iteration has before its update, on every device."""

    rollout: Rollout
    scores: Array  # [N, B/N]
    experience: Experience
    metrics: Metrics


def make_experience(
    nets: Networks,
    ppo: PPOConfig,
    score: Callable[[Rollout], Array],
    ref_params: Params,
    frozen: Params | None,
    devices: Devices,
    report: Callable[..., None] | None = None,
) -> Callable[[PolicyState, TokenBatch, Array], Sampled]:
    """A function ``(state, prompts, key)``: samples, scores, compares, looks ahead.

    The parameters are those on every device. ``report`` is told how a rollout goes on.
    """
    sample = functools.partial(
        sample_step,
        apply_fn=nets.sample_fn,
        config=ppo.sampling,
        layout=nets.layout,
        report=report,
    )
    prepare = functools.partial(
        experience_step, ref_apply_fn=nets.ref_apply_fn, config=ppo
    )
    sample = data_parallel(sample, devices, in_axes=(None, 0, 0, None), out_axes=0)
    prepare = data_parallel(
        prepare, devices, in_axes=(None, None, 0, 0, None), out_axes=(0, None)
    )

    def experience_of(state: PolicyState, prompts: TokenBatch, key: Array) -> Sampled:
        rows = np.arange(prompts.tokens.shape[0], dtype=np.int32)
        asked = shard((prompts, rows), devices)
        rollout = sample(state.params, *asked, frozen, key=key)
        scores = score(rollout)
        found = prepare(state, ref_params, rollout, scores, frozen)
        return Sampled(rollout, scores, *found)

    return experience_of


class Evaluation(NamedTuple):
    """Samples of a policy on held-out prompts."""

    prompts: list[str]
    completions: list[str]
    scores: np.ndarray
    gold: np.ndarray | None
    metrics: dict[str, float]

    def summary(self) -> dict[str, float]:
        """The numbers that LABELS names."""
        numbers = {} if self.gold is None else {"gold": float(self.gold.mean())}
        return numbers | {
            "reward": float(self.scores.mean()),
            "kl": self.metrics["objective/kl"],
            "distinct": len(set(self.completions)) / len(self.completions),
            "response_length": self.metrics["rollout/response_length"],
            "ended": self.metrics["rollout/ended"],
        }

    def row(self, i: int) -> dict[str, Any]:
        """One sample, for samples.jsonl."""
        gold = {} if self.gold is None else {"gold": float(self.gold[i])}
        return {
            "completion": self.completions[i],
            "score": float(self.scores[i]),
        } | gold


def evaluate_policy(
    experience_of: Callable[[PolicyState, TokenBatch, Array], Sampled],
    state: PolicyState,
    *,
    prompts: TokenBatch,
    key: Array,
    tokenizer: Any,
    gold: RewardFunction | None,
) -> Evaluation:
    """Samples of the policy, the same randomness each time."""
    sampled = experience_of(state, prompts, key)
    texts = decode(tokenizer, unshard(sampled.rollout))
    return Evaluation(
        *texts,
        scores=np.asarray(unshard(sampled.scores)),
        gold=None if gold is None else call_reward_function(gold, *texts),
        metrics=sampled.metrics.compute(),
    )


LABELS = {
    "gold": "gold score",
    "reward": "learned reward",
    "kl": "KL from the reference (nats an episode)",
    "distinct": "distinct samples (share)",
    "response_length": "response length (tokens)",
    "ended": "ended by a stop token (share)",
}
