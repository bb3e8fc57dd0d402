"""From prompts to experience: sample, score, compare with the reference, look ahead."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.masking import last_token_mask, masked_sum, masked_whiten
from rlhf_jax.ops.advantages import gae_advantages
from rlhf_jax.ops.kl import kl_penalized_rewards
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.steps.config import PPOConfig
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.state import PolicyState
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Experience,
    Metrics,
    Params,
    Rollout,
    TokenBatch,
    join_params,
)


def sample_step(
    params: Params,
    prompts: TokenBatch,
    row: Array,
    frozen: Params | None = None,
    *,
    key: Array,
    apply_fn: ApplyFn,
    config: SamplingConfig,
    layout: Callable[[Params], Params] = lambda params: params,
    report: Callable[..., None] | None = None,
    axis_name: str | None = None,
) -> Rollout:
    """Samples responses to prompts: `generate` as a step. No reference.

    Args:
      params: of the policy.
      prompts: [B, P] tokens, left-padded.
      row: [B] int32 global rows; with ``key`` they decide what is sampled.
      frozen: parameters of the policy that are not trained; None where all are.
      key: PRNG key, the same on every device.
      apply_fn: the policy.
      config: sampling settings.
      layout: what is done to the parameters once, before the decode loop; see
        `models.decode_layout`.
      report: called on the host while it runs, as ``generate`` says.
      axis_name: unused; rows are independent.

    Returns:
      Rollout of [B · completions, P + R].
    """
    del axis_name
    whole = layout(join_params(frozen, params))
    return generate(
        apply_fn, whole, prompts, key=key, config=config, rows=row, report=report
    )


def shape_scores(scores: Array, truncated: Array, config: PPOConfig) -> Array:
    """Clips the scores, then lets a missing stop token replace or lower them.

    Ziegler et al. 2019, arXiv:1909.08593: a response without its stop token scores −1.

    Args:
      scores: [B] float.
      truncated: [B] bool, no stop token within the budget.
      config: ``score_clip``, ``missing_stop`` and ``missing_stop_score``.

    Returns:
      [B] float32.

    >>> config = PPOConfig(score_clip=5.0)
    >>> shape_scores(jnp.array([9.0, 2.0]), jnp.array([False, True]), config)
    Array([ 5., -1.], dtype=float32)
    """
    scores = scores.astype(jnp.float32)
    if config.score_clip is not None:
        scores = jnp.clip(scores, -config.score_clip, config.score_clip)
    if config.missing_stop == "keep":
        return scores
    penalty = jnp.float32(config.missing_stop_score)
    penalized = penalty if config.missing_stop == "replace" else scores + penalty
    return jnp.where(truncated, penalized, scores)


def experience_step(
    state: PolicyState,
    ref_params: Params,
    rollout: Rollout,
    scores: Array,
    frozen: Params | None = None,
    *,
    ref_apply_fn: ApplyFn,
    config: PPOConfig,
    axis_name: str | None = None,
) -> tuple[Experience, Metrics]:
    """Everything an update needs: reference log-probs, values, rewards, advantages.

    rₜ = −β KLₜ + [t last] · score; Âₜ by GAE, whitened over the global batch.
    Ziegler et al. 2019, arXiv:1909.08593; Schulman et al. 2015, arXiv:1506.02438.

    Args:
      state: the policy that sampled the rollout, with its critic.
      ref_params: of the reference policy.
      rollout: [B, T].
      scores: [B] float32, one number a sequence.
      frozen: parameters of policy and critic that are not trained; None where all are.
      ref_apply_fn: the reference policy.
      config: KL estimator, score and reward treatment, γ, λ.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      Experience, 0 outside the mask; and the metrics ``objective/*`` and ``rollout/*``
      of the global batch (docs/metrics).
    """
    batch, mask = rollout.batch, rollout.batch.mask
    temperature = config.sampling.temperature
    reference = policy_forward(
        ref_apply_fn, ref_params, batch, temperature=temperature, kept=rollout.kept
    )
    values = policy_forward(
        state.apply_fn,
        join_params(frozen, state.params),
        batch,
        temperature=temperature,
    ).values
    if values is None:
        raise ValueError("the policy has no critic: PPO needs an apply_fn with values")
    scores = shape_scores(scores, rollout.truncated, config)
    ref_logprobs = jnp.where(mask, reference.logprobs, 0.0)
    rewards = kl_penalized_rewards(
        scores,
        rollout.logprobs,
        ref_logprobs,
        mask,
        kl_coef=state.kl_coef,
        kind=config.kl.kind,
    )
    metrics = _objective_metrics(rollout, ref_logprobs, rewards, scores, state.kl_coef)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, axis_name=axis_name)
    advantages, returns = gae_advantages(
        rewards, values, mask, gamma=config.gamma, lam=config.lam
    )
    experience = Experience(
        rollout=rollout,
        ref_logprobs=ref_logprobs,
        values=jnp.where(mask, values, 0.0),
        rewards=rewards,
        advantages=masked_whiten(advantages, mask, axis_name=axis_name),
        returns=returns,
        scores=scores,
    )
    experience = jax.lax.stop_gradient(experience)
    return experience, metrics.reduce(axis_name)


def episode_kl(rollout: Rollout, ref_logprobs: Array) -> tuple[Array, Array]:
    """(sum over episodes of Σₜ log π − log π_ref, episodes): nats an episode, by k1."""
    kl, _ = masked_sum(rollout.logprobs - ref_logprobs, rollout.batch.mask)
    return kl, jnp.sum(rollout.row >= 0, dtype=jnp.float32)


def _objective_metrics(
    rollout: Rollout, ref_logprobs: Array, rewards: Array, scores: Array, kl_coef: Array
) -> Metrics:
    mask = rollout.batch.mask
    kl, episodes = episode_kl(rollout, ref_logprobs)
    reward, tokens = masked_sum(rewards, mask)
    neg_logprob, _ = masked_sum(-rollout.logprobs, mask)
    answered = jnp.any(last_token_mask(mask), axis=1)
    score, _ = masked_sum(scores, answered)
    per_episode = {
        "objective/kl": kl,
        "objective/entropy": neg_logprob,
        "objective/score": jnp.sum(scores),
        "objective/non_score_reward": reward - score,
        "objective/kl_coef": kl_coef * episodes,
        "rollout/response_length": tokens,
        "rollout/ended": jnp.sum(~rollout.truncated),
    }
    return Metrics.of({name: (total, episodes) for name, total in per_episode.items()})
