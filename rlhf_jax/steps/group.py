"""GRPO: several responses a prompt, compared with each other, in place of a critic."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.errors import UserError
from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.advantages import GroupScale, group_advantages
from rlhf_jax.ops.kl import kl_estimate
from rlhf_jax.ops.policy_loss import ppo_loss
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.minibatches import gather, in_minibatches
from rlhf_jax.steps.rollout import episode_kl
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, Rollout, join_params


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """GRPO (arXiv:2402.03300); scale none for Dr. GRPO's advantages (2503.20783).

    Raises:
      UserError: a value that no training can have; the message names the option.

    >>> sampling = SamplingConfig(max_new_tokens=24, completions=8)
    >>> GRPOConfig(sampling).kl_coef
    0.04
    """

    sampling: SamplingConfig
    """Response budget, temperature (of every log-prob); completions: the group size."""
    kl_coef: float = 0.04
    """Weight of the k3 estimate in the loss; 0 needs no reference policy."""
    epochs: int = 1
    """Passes over each batch of episodes."""
    minibatches: int = 1
    """Updates a pass."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""
    clip_eps: float = 0.2
    """Clip range of the policy's probability ratio."""
    scale: GroupScale = "std"
    """What advantages are divided by: the group's deviation, nothing, the batch's."""

    def __post_init__(self):
        sizes = {
            "epochs": (self.epochs, 1),
            "minibatches": (self.minibatches, 1),
            "micro_batches": (self.micro_batches, 1),
            "sampling.completions": (self.sampling.completions, 2),
        }
        for name, (value, least) in sizes.items():
            if value < least:
                raise UserError(f"{name} = {value}: expected {least} or more")
        if not self.kl_coef >= 0:
            raise UserError(f"kl_coef = {self.kl_coef}: expected 0 or more")
        if not self.clip_eps > 0:
            raise UserError(f"clip_eps = {self.clip_eps}: expected more than 0")
        if self.scale not in get_args(GroupScale):
            raise UserError(f"scale = {self.scale!r}: expected std, none or batch")


@struct.dataclass
class GroupExperience:
    """A rollout with what a GRPO update needs; the rows of a group are adjacent."""

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
    config: GRPOConfig,
    axis_name: str | None = None,
) -> tuple[GroupExperience, Metrics]:
    """What an update needs: reference log-probs, advantages within the group.

    Shao et al. 2024, arXiv:2402.03300, §4.1. Advantages come from the scores of the
    global batch, so that a group may lie on two devices.

    Args:
      ref_params: of the reference policy; not looked at if ``kl_coef`` is 0.
      rollout: [B, T], the responses to a prompt in adjacent rows.
      scores: [B] float, one number a sequence.
      ref_apply_fn: the reference policy; not called if ``kl_coef`` is 0.
      config: group size, scale of the advantages, temperature.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      GroupExperience, 0 outside the mask; and the metrics ``objective/*``,
      ``rollout/*`` and ``group/*`` of the global batch (docs/metrics).

    Raises:
      ValueError: the group size does not divide the global batch.
    """
    scores = scores.astype(jnp.float32)
    every = gather(scores, axis_name)
    size = config.sampling.completions
    advantages = group_advantages(every, group_size=size, scale=config.scale)
    if axis_name is not None:
        start = jax.lax.axis_index(axis_name) * scores.shape[0]
        advantages = jax.lax.dynamic_slice_in_dim(advantages, start, scores.shape[0])
    experience = GroupExperience(
        rollout=rollout,
        ref_logprobs=_reference(ref_apply_fn, ref_params, rollout, config),
        advantages=jnp.where(rollout.batch.mask, advantages[:, None], 0.0),
        scores=scores,
    )
    experience = jax.lax.stop_gradient(experience)
    metrics = _objective_metrics(experience).reduce(axis_name)
    return experience, metrics + _group_metrics(every.reshape(-1, size))


def grpo_step(
    state: TrainState,
    experience: GroupExperience,
    frozen: Params | None = None,
    *,
    key: Array,
    config: GRPOConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Epochs × minibatches updates of L = L_clip(Âᵢ) + β · k3(π, π_ref).

    Shao et al. 2024, arXiv:2402.03300, eq. 3. The loss is the mean over the tokens of
    the global minibatch: every token counts alike, where eq. 3 first averages over each
    response. Minibatches are drawn from the global batch, each anew in every epoch, so
    that the result does not depend on the number of devices.

    Args:
      state: the policy.
      experience: [B, T] a device, rows packed or not.
      frozen: parameters of the policy that are not trained; None where all are.
      key: PRNG key of the permutations, the same on every device.
      config: epochs, minibatches, clip range, KL coefficient.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and metrics: ``policy/*`` over all updates; ``first/*`` of the first
      update alone, where the ratio must still be 1. A masked token has no part.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts, or
        a KL term is asked for and the experience has no ref_logprobs.
    """
    if config.kl_coef and experience.ref_logprobs is None:
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
    config: GRPOConfig,
    axis_name: str | None,
) -> tuple[TrainState, Metrics]:
    """One update of the clipped policy loss plus the KL term."""

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
        terms, metrics = ppo_loss(
            logprobs, rollout.logprobs, part.advantages, mask, clip_eps=config.clip_eps
        )
        ref_logprobs = part.ref_logprobs
        if config.kl_coef and ref_logprobs is not None:
            kl = kl_estimate(logprobs, ref_logprobs, kind="k3", mask=mask)
            terms = terms + config.kl_coef * kl
            metrics = metrics + Metrics.of({"policy/ref_kl": masked_sum(kl, mask)})
        return *masked_sum(terms, mask), metrics

    return apply_loss(
        state,
        loss_fn,
        minibatch,
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def _reference(
    ref_apply_fn: ApplyFn, ref_params: Params, rollout: Rollout, config: GRPOConfig
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
