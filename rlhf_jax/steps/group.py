"""Several responses a prompt, compared with each other, in place of a critic."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.advantages import (
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
)
from rlhf_jax.ops.kl import kl_estimate
from rlhf_jax.ops.length_penalty import overlong_penalty
from rlhf_jax.ops.policy_loss import (
    cispo_loss,
    gspo_loss,
    policy_gradient_loss,
    ppo_loss,
    ratio_metrics,
)
from rlhf_jax.ops.reduction import loss_weights
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.group_config import GroupConfig
from rlhf_jax.steps.minibatches import gather, in_minibatches
from rlhf_jax.steps.rollout import episode_kl
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, Rollout, join_params


@struct.dataclass
class GroupExperience:
    """A rollout with what an update needs; the rows of a group are adjacent."""

    rollout: Rollout
    ref_logprobs: Array | None  # [B, T] float32 nats; None without a KL term
    advantages: Array  # [B, T] float32, the same for every token of a response
    scores: Array  # [B] float32, one number a sequence


def group_experience_step(
    ref_params: Params,
    rollout: Rollout,
    scores: Array,
    *,
    ref_apply_fn: ApplyFn,
    config: GroupConfig,
    axis_name: str | None = None,
) -> tuple[GroupExperience, Metrics]:
    """What an update needs: reference log-probs, advantages within the group.

    Âᵢ compares sᵢ + overlong penalty − β Σₜ k1 with the group, the last two where
    config says so. Shao et al. 2024, arXiv:2402.03300, §4.1; see `GROUP_PRESETS`.
    Advantages come from the scores of the global batch, so that a group may lie on two
    devices.

    Args:
      ref_params: of the reference policy; not looked at if ``kl_coef`` is 0.
      rollout: [B, T], the responses to a prompt in adjacent rows.
      scores: [B] float, one number a sequence.
      ref_apply_fn: the reference policy; not called if ``kl_coef`` is 0.
      config: group size, advantages, KL and length penalty, temperature.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      GroupExperience, 0 outside the mask, its mask empty in groups that are skipped;
      and the metrics ``objective/*``, ``rollout/*`` and ``group/*`` of the global batch
      (docs/metrics), of the scores as they are given.

    Raises:
      ValueError: the group size does not divide the global batch.
    """
    scores, mask = scores.astype(jnp.float32), rollout.batch.mask
    size, count = config.sampling.completions, scores.shape[0]
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    here = lambda x: jax.lax.dynamic_slice_in_dim(x, start, count)
    ref_logprobs = _reference(ref_apply_fn, ref_params, rollout, config)
    every = gather(scores, axis_name)
    compared = _compared(scores, rollout, ref_logprobs, config)
    advantages = here(_advantages(gather(compared, axis_name), config))
    experience = GroupExperience(
        rollout=rollout,
        ref_logprobs=ref_logprobs,
        advantages=jnp.where(mask, advantages[:, None], 0.0),
        scores=scores,
    )
    experience = jax.lax.stop_gradient(experience)
    metrics = _objective_metrics(experience).reduce(axis_name)
    metrics += _group_metrics(every.reshape(-1, size))
    if config.skip_equal:
        taught = here(informative_groups(every, group_size=size))
        batch = dataclasses.replace(rollout.batch, mask=mask & taught[:, None])
        updated = dataclasses.replace(rollout, batch=batch)
        experience = dataclasses.replace(experience, rollout=updated)
    return experience, metrics


def group_step(
    state: TrainState,
    experience: GroupExperience,
    frozen: Params | None = None,
    *,
    key: Array,
    config: GroupConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Epochs × minibatches updates of L = Σ wₜ (Lₜ(Âᵢ) + β · KLₜ) / Σ count.

    Shao et al. 2024, arXiv:2402.03300, eq. 3, and its relatives: Lₜ is the surrogate
    that the config names, w and count are those of `ops.loss_weights`. Minibatches are
    drawn from the global batch, each anew in every epoch, so that the result does not
    depend on the number of devices.

    Args:
      state: the policy.
      experience: [B, T] a device, rows packed or not.
      frozen: parameters of the policy that are not trained; None where all are.
      key: PRNG key of the permutations, the same on every device.
      config: epochs, minibatches, surrogate, reduction, KL coefficient.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and metrics: ``policy/*`` over all updates; ``first/*`` of the first
      update alone, where the ratio must still be 1. A masked token has no part.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts, or
        a KL term is asked for and the experience has no ref_logprobs.
    """
    if _kl_in_loss(config) and experience.ref_logprobs is None:
        raise ValueError(f"kl_coef = {config.kl_coef}: the experience has no reference")
    update = lambda state, minibatch: _update(
        state, minibatch, frozen, config=config, axis_name=axis_name
    )
    return in_minibatches(
        update, state, experience, key=key, config=config, axis_name=axis_name
    )


def _update(
    state: TrainState,
    minibatch: GroupExperience,
    frozen: Params | None,
    *,
    config: GroupConfig,
    axis_name: str | None,
) -> tuple[TrainState, Metrics]:
    """One update of the surrogate plus the KL term."""

    def loss_fn(params, part):
        rollout, mask = part.rollout, part.rollout.batch.mask
        whole = join_params(frozen, params)
        logprobs = policy_forward(
            state.apply_fn,
            whole,
            rollout.batch,
            temperature=config.sampling.temperature,
            kept=rollout.kept,
        ).logprobs
        terms, metrics = _surrogate(logprobs, part, config)
        if _kl_in_loss(config):
            kl = kl_estimate(
                logprobs, part.ref_logprobs, kind=config.kl_kind, mask=mask
            )
            terms = terms + config.kl_coef * kl
            metrics = metrics + Metrics.of({"policy/ref_kl": masked_sum(kl, mask)})
        weights, count = loss_weights(
            mask,
            rollout.batch.segment_ids,
            kind=config.reduction,
            length=config.length,
        )
        return jnp.sum(weights * terms), count, metrics

    return apply_loss(
        state,
        loss_fn,
        minibatch,
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def _surrogate(
    logprobs: Array, part: GroupExperience, config: GroupConfig
) -> tuple[Array, Metrics]:
    """[B, T] terms of the loss, 0 where masked, and metrics with those of the ratio."""
    old_logprobs, batch = part.rollout.logprobs, part.rollout.batch
    ratio_of = logprobs, old_logprobs, part.advantages, batch.mask
    bounds = {"clip_eps": config.clip_eps, "clip_eps_high": config.clip_eps_high}
    match config.surrogate:
        case "ppo":
            return ppo_loss(*ratio_of, **bounds, dual_clip=config.dual_clip)
        case "gspo":
            return gspo_loss(*ratio_of, batch.segment_ids, **bounds)
        case "cispo":
            return cispo_loss(*ratio_of, max_ratio=config.max_ratio)
        case "policy_gradient":
            terms, metrics = policy_gradient_loss(logprobs, part.advantages, batch.mask)
            return terms, metrics + ratio_metrics(logprobs, old_logprobs, batch.mask)


def _kl_in_loss(config: GroupConfig) -> bool:
    return config.kl_coef > 0 and config.kl_in == "loss"


def _compared(
    scores: Array, rollout: Rollout, ref_logprobs: Array | None, config: GroupConfig
) -> Array:
    """[B] scores, less what length and distance from the reference cost."""
    mask = rollout.batch.mask
    if config.overlong_buffer is not None:
        scores = scores + overlong_penalty(
            jnp.sum(mask, axis=1),
            budget=config.sampling.max_new_tokens,
            buffer=config.overlong_buffer,
        )
    if config.kl_in == "score" and ref_logprobs is not None:
        kl = kl_estimate(rollout.logprobs, ref_logprobs, kind=config.kl_kind, mask=mask)
        scores = scores - config.kl_coef * jnp.sum(kl, axis=1)
    return scores


def _advantages(scores: Array, config: GroupConfig) -> Array:
    """[B] of the global batch's scores."""
    size = config.sampling.completions
    if config.advantage == "leave_one_out":
        return leave_one_out_advantages(scores, group_size=size)
    return group_advantages(scores, group_size=size, scale=config.scale)


def _reference(
    ref_apply_fn: ApplyFn, ref_params: Params, rollout: Rollout, config: GroupConfig
) -> Array | None:
    """[B, T] nats, 0 where masked; None, and no forward pass, without a KL term."""
    if not config.kl_coef:
        return None
    reference = policy_forward(
        ref_apply_fn,
        ref_params,
        rollout.batch,
        temperature=config.sampling.temperature,
        kept=rollout.kept,
    )
    return jnp.where(rollout.batch.mask, reference.logprobs, 0.0)


def _objective_metrics(experience: GroupExperience) -> Metrics:
    """Sums over this device's responses."""
    rollout, mask = experience.rollout, experience.rollout.batch.mask
    neg_logprob, tokens = masked_sum(-rollout.logprobs, mask)
    per_episode = {
        "objective/entropy": neg_logprob,
        "objective/score": jnp.sum(experience.scores),
        "rollout/response_length": tokens,
        "rollout/ended": jnp.sum(~rollout.truncated),
    }
    if experience.ref_logprobs is not None:
        per_episode["objective/kl"], _ = episode_kl(rollout, experience.ref_logprobs)
    episodes = experience.scores.shape[0]
    return Metrics.of({name: (total, episodes) for name, total in per_episode.items()})


def _group_metrics(scores: Array) -> Metrics:
    """From the [N, G] scores of the global batch, so there is nothing to reduce."""
    count = scores.shape[0]
    equal = jnp.all(scores == scores[:, :1], axis=1)
    deviation = jnp.std(scores, axis=1, ddof=1)
    return Metrics.of(
        {
            "group/score_std": (jnp.sum(deviation), count),
            "group/equal": (jnp.sum(equal), count),
        }
    )
