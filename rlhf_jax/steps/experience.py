"""From scored rollouts to experience: compare with the reference, look ahead."""

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.masking import last_token_mask, masked_whiten
from rlhf_jax.ops.advantages import (
    discounted_returns,
    gae_advantages,
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
)
from rlhf_jax.ops.importance import importance_weights
from rlhf_jax.ops.kl import kl_penalized_rewards
from rlhf_jax.ops.length_penalty import overlong_penalty
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.minibatches import gather
from rlhf_jax.steps.objective import group_metrics, objective_metrics
from rlhf_jax.steps.policy_config import GROUPS, PolicyConfig
from rlhf_jax.steps.state import PolicyState
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Experience,
    Metrics,
    Params,
    PolicyOutput,
    Rollout,
    join_params,
)


def experience_step(
    state: PolicyState,
    ref_params: Params,
    rollout: Rollout,
    scores: Array,
    frozen: Params | None = None,
    greedy_scores: Array | None = None,
    *,
    ref_apply_fn: ApplyFn,
    config: PolicyConfig,
    axis_name: str | None = None,
) -> tuple[Experience, Metrics]:
    """Everything an update needs: reference log-probs, values, rewards, advantages.

    rₜ = −β KLₜ + [t last] · (score − overlong penalty), the KL where the config puts it
    into the reward; Âₜ compares rewards with what config.advantage names, over the
    global batch, so that a group may lie on two devices. Ziegler et al. 2019,
    arXiv:1909.08593; Schulman et al. 2015, arXiv:1506.02438; Shao et al. 2024,
    arXiv:2402.03300, §4.1; see `POLICY_PRESETS`.

    Args:
      state: the policy, with a critic for gae; the one that sampled the rollout, or one
        that is n updates ahead of it (``importance_cap``).
      ref_params: of the reference policy; not looked at if ``kl.coef`` is 0.
      rollout: [B, T]; the responses to a prompt in adjacent rows.
      scores: [B] float, one number a sequence.
      frozen: parameters of policy and critic that are not trained; None where all are.
      greedy_scores: [B] float, of the greedy response to each row's prompt; for the
        advantage "greedy".
      ref_apply_fn: the reference policy; not called if ``kl.coef`` is 0.
      config: KL, treatment of scores and rewards, advantage.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      Experience, 0 outside the mask, its mask empty in groups that are skipped; and the
      metrics ``objective/*``, ``rollout/*`` and, of groups, ``group/*`` of the global
      batch (docs/metrics).

    Raises:
      ValueError: no critic, no greedy scores, or a group size that does not divide the
        global batch.
    """
    mask = rollout.batch.mask
    scores = shape_scores(scores, rollout.truncated, config)
    ref_logprobs = _reference(ref_apply_fn, ref_params, rollout, config)
    rewards = _rewards(scores, rollout, ref_logprobs, state.kl_coef, config)
    metrics = objective_metrics(rollout, ref_logprobs, rewards, scores, state.kl_coef)
    metrics = metrics.reduce(axis_name)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, axis_name=axis_name)
    policy = _policy(state, frozen, rollout, config)
    values = None if policy is None or config.advantage != "gae" else policy.values
    advantages, returns = _advantages(
        rewards, values, greedy_scores, mask, config=config, axis_name=axis_name
    )
    if config.importance_cap is not None:
        assert policy is not None
        rollout, advantages = _corrected(rollout, policy.logprobs, advantages, config)
    if config.advantage in GROUPS:
        every = gather(scores, axis_name)
        metrics += group_metrics(every, config)
        if config.skip_equal:
            rollout = _skip_equal(rollout, every, config, axis_name)
    experience = Experience(
        rollout=rollout,
        ref_logprobs=ref_logprobs,
        values=None if values is None else jnp.where(mask, values, 0.0),
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        scores=scores,
    )
    return jax.lax.stop_gradient(experience), metrics


def shape_scores(scores: Array, truncated: Array, config: PolicyConfig) -> Array:
    """Clips the scores, then lets a missing stop token replace or lower them.

    Ziegler et al. 2019, arXiv:1909.08593: a response without its stop token scores −1.

    Args:
      scores: [B] float.
      truncated: [B] bool, no stop token within the budget.
      config: ``score_clip``, ``missing_stop`` and ``missing_stop_score``.

    Returns:
      [B] float32.

    >>> config = PolicyConfig(score_clip=5.0)
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


def _reference(
    ref_apply_fn: ApplyFn, ref_params: Params, rollout: Rollout, config: PolicyConfig
) -> Array | None:
    """[B, T] nats, 0 where masked; None, and no forward pass, without a KL."""
    if not config.kl.coef:
        return None
    reference = policy_forward(
        ref_apply_fn,
        ref_params,
        rollout.batch,
        temperature=config.sampling.temperature,
        kept=rollout.kept,
    )
    return jnp.where(rollout.batch.mask, reference.logprobs, 0.0)


def _policy(
    state: PolicyState, frozen: Params | None, rollout: Rollout, config: PolicyConfig
) -> PolicyOutput | None:
    """What policy and critic say of the rollout now; None, and no forward pass, where
    the rollout has all that is needed.
    """
    if config.advantage != "gae" and config.importance_cap is None:
        return None
    policy = policy_forward(
        state.apply_fn,
        join_params(frozen, state.params),
        rollout.batch,
        temperature=config.sampling.temperature,
        kept=rollout.kept if config.importance_cap is not None else None,
    )
    if config.advantage == "gae" and policy.values is None:
        raise ValueError(
            "the policy has no critic: advantage = gae needs an apply_fn with values"
        )
    return policy


def _rewards(
    scores: Array,
    rollout: Rollout,
    ref_logprobs: Array | None,
    kl_coef: Array,
    config: PolicyConfig,
) -> Array:
    """[B, T], of each token: the score at the last one, less what the KL costs."""
    mask = rollout.batch.mask
    if config.overlong_buffer is not None:
        scores = scores + overlong_penalty(
            jnp.sum(mask, axis=1),
            budget=config.sampling.max_new_tokens,
            buffer=config.overlong_buffer,
        )
    if ref_logprobs is None or config.kl.place == "loss":
        return jnp.where(last_token_mask(mask), scores[:, None], 0.0)
    return kl_penalized_rewards(
        scores,
        rollout.logprobs,
        ref_logprobs,
        mask,
        kl_coef=kl_coef,
        kind=config.kl.kind,
    )


def _advantages(
    rewards: Array,
    values: Array | None,
    greedy_scores: Array | None,
    mask: Array,
    *,
    config: PolicyConfig,
    axis_name: str | None,
) -> tuple[Array, Array | None]:
    """([B, T], 0 where masked; the critic's targets, where there is one)."""
    returns = None
    match config.advantage:
        case "gae":
            assert values is not None
            advantages, returns = gae_advantages(
                rewards, values, mask, gamma=config.gamma, lam=config.lam
            )
        case "returns":
            advantages = discounted_returns(rewards, mask, gamma=config.gamma)
        case "greedy":
            if greedy_scores is None:
                raise ValueError("advantage = greedy: expected greedy_scores, got None")
            greedy = jnp.where(last_token_mask(mask), greedy_scores[:, None], 0.0)
            advantages = discounted_returns(rewards - greedy, mask)
        case "group" | "leave_one_out":
            lead = _lead(jnp.sum(rewards, axis=1), config, axis_name)
            advantages = jnp.where(mask, lead[:, None], 0.0)
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, mask, axis_name=axis_name)
    return advantages, returns


def _lead(rewards: Array, config: PolicyConfig, axis_name: str | None) -> Array:
    """[B] over the other responses to the prompt, which may be on other devices."""
    every, size = gather(rewards, axis_name), config.sampling.completions
    if config.advantage == "leave_one_out":
        lead = leave_one_out_advantages(every, group_size=size)
    else:
        lead = group_advantages(every, group_size=size, scale=config.scale)
    return _here(lead, rewards.shape[0], axis_name)


def _here(every: Array, count: int, axis_name: str | None) -> Array:
    """This device's part of what was gathered."""
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return jax.lax.dynamic_slice_in_dim(every, start, count)


def _corrected(
    rollout: Rollout, logprobs: Array, advantages: Array, config: PolicyConfig
) -> tuple[Rollout, Array]:
    """The rollout as if the policy had sampled it now: its log-probs, and advantages
    times π/μ. Every surrogate is proportional to the advantage, if its sign stays.
    """
    assert config.importance_cap is not None
    mask = rollout.batch.mask
    weights = importance_weights(
        logprobs,
        rollout.logprobs,
        mask,
        kind=config.importance_kind,
        level=config.importance_level,
        cap=config.importance_cap,
    )
    now = jnp.where(mask, logprobs, 0.0)
    return dataclasses.replace(rollout, logprobs=now), advantages * weights


def _skip_equal(
    rollout: Rollout, every: Array, config: PolicyConfig, axis_name: str | None
) -> Rollout:
    """No token of a group of equal scores is in the mask."""
    mask, size = rollout.batch.mask, config.sampling.completions
    taught = informative_groups(every, group_size=size)
    taught = _here(taught, mask.shape[0], axis_name)
    batch = dataclasses.replace(rollout.batch, mask=mask & taught[:, None])
    return dataclasses.replace(rollout, batch=batch)
