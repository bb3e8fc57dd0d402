"""The policy update: all epochs and minibatches of a batch of episodes, in one scan."""

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.kl import adaptive_kl_update, kl_estimate
from rlhf_jax.ops.policy_loss import (
    cispo_loss,
    gspo_loss,
    policy_gradient_loss,
    ppo_loss,
    ratio_metrics,
)
from rlhf_jax.ops.reduction import loss_weights
from rlhf_jax.ops.value_loss import explained_variance, value_loss
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.minibatches import gather, in_minibatches
from rlhf_jax.steps.objective import episode_kl
from rlhf_jax.steps.policy_config import PolicyConfig
from rlhf_jax.steps.state import PolicyState, apply_loss
from rlhf_jax.types import (
    Array,
    Experience,
    Metrics,
    Params,
    PolicyOutput,
    TokenBatch,
    join_params,
)


def policy_step(
    state: PolicyState,
    experience: Experience,
    frozen: Params | None = None,
    demonstrations: TokenBatch | None = None,
    *,
    key: Array,
    config: PolicyConfig,
    axis_name: str | None = None,
) -> tuple[PolicyState, Metrics]:
    """Epochs × minibatches updates of the loss that the config composes; the KL rule.

    L = Σ wₜ (Lₜ(Âₜ) + β KLₜ − c_H Hₜ + c_v Vₜ) / Σ count + c_ptx · NLL: Lₜ is the
    surrogate, w and count are those of `ops.loss_weights`, the other terms are there
    where the config asks for them. Schulman et al. 2017, arXiv:1707.06347; Shao et al.
    2024, arXiv:2402.03300, eq. 3; PTX: Ouyang et al. 2022, arXiv:2203.02155; adaptive
    β: Ziegler et al. 2019, arXiv:1909.08593. Minibatches are drawn from the global
    batch, each anew in every epoch, so that the result does not depend on the number of
    devices.

    Args:
      state: policy, and critic for the advantage gae.
      experience: [B, T] a device, rows packed or not.
      frozen: parameters of policy and critic that are not trained; None where all are.
      demonstrations: [B, T'] for ``ptx_coef``: each minibatch has as many of its rows.
      key: PRNG key of the permutations, the same on every device.
      config: epochs, minibatches, and what the loss is made of.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and metrics: ``policy/*`` and ``value/*`` over all updates;
      ``first/*`` of the first update alone, where the ratio must still be 1. A masked
      token has no part.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts;
        the experience has no ref_logprobs or values where the loss has them; there are
        no demonstrations, or not as many as episodes.
    """
    _check(experience, demonstrations, config)
    update = lambda state, parts: _update(
        state, parts[0], parts[1], frozen, config=config, axis_name=axis_name
    )
    state, metrics = in_minibatches(
        update,
        state,
        (experience, demonstrations),
        key=key,
        config=config,
        axis_name=axis_name,
    )
    if experience.values is None and config.kl.target is None:
        return state, metrics
    whole = gather(experience, axis_name)
    if whole.values is not None and whole.returns is not None:
        explained = explained_variance(
            whole.values, whole.returns, whole.rollout.batch.mask
        )
        metrics += Metrics.of({"value/explained_variance": (explained, 1)})
    return _adapt_kl_coef(state, whole, config), metrics


def _update(
    state: PolicyState,
    minibatch: Experience,
    demonstrations: TokenBatch | None,
    frozen: Params | None,
    *,
    config: PolicyConfig,
    axis_name: str | None,
) -> tuple[PolicyState, Metrics]:
    """One update: the loss of a minibatch of the global batch."""
    kl_coef, learns = state.kl_coef, _learns(state, config)
    ptx_scale = _ptx_scale(minibatch, demonstrations, config, axis_name)

    def loss_fn(params, parts):
        part, shown = parts
        forward = lambda batch, **options: policy_forward(
            state.apply_fn, join_params(frozen, params), batch, **options
        )
        rollout, temperature = part.rollout, config.sampling.temperature
        policy = forward(rollout.batch, temperature=temperature, kept=rollout.kept)
        terms, metrics = _policy_terms(policy, part, kl_coef, config)
        terms = terms if learns is None else learns * terms
        if config.advantage == "gae":
            value_terms, value_metrics = _value_terms(policy, part, config)
            terms = terms + config.value_coef * value_terms
            metrics = metrics + value_metrics
        weights, count = _weights(part, config)
        total = jnp.sum(weights * terms)
        if shown is not None and ptx_scale is not None:
            nll, tokens = masked_sum(
                -forward(shown, temperature=1.0).logprobs, shown.mask
            )
            total = total + ptx_scale * nll
            metrics = metrics + Metrics.of({"policy/ptx_loss": (nll, tokens)})
        return total, count, metrics

    return apply_loss(
        state,
        loss_fn,
        (minibatch, demonstrations),
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def _policy_terms(
    policy: PolicyOutput, part: Experience, kl_coef: Array, config: PolicyConfig
) -> tuple[Array, Metrics]:
    """[B, T] terms of the policy's loss, 0 where masked, and metrics."""
    mask = part.rollout.batch.mask
    terms, metrics = _surrogate(policy.logprobs, part, config)
    if _kl_in_loss(config):
        assert part.ref_logprobs is not None
        kl = kl_estimate(
            policy.logprobs, part.ref_logprobs, kind=config.kl.kind, mask=mask
        )
        terms = terms + kl_coef * kl
        metrics = metrics + Metrics.of({"policy/ref_kl": masked_sum(kl, mask)})
    if config.entropy_coef:
        entropy = jnp.where(mask, policy.entropy, 0.0)
        terms = terms - config.entropy_coef * entropy
        metrics = metrics + Metrics.of({"policy/entropy": masked_sum(entropy, mask)})
    return terms, metrics


def _surrogate(
    logprobs: Array, part: Experience, config: PolicyConfig
) -> tuple[Array, Metrics]:
    """[B, T] terms of the surrogate, and metrics with those of the ratio."""
    old_logprobs, batch = part.rollout.logprobs, part.rollout.batch
    ratio_of = logprobs, old_logprobs, part.advantages, batch.mask
    bounds: Any = {"clip_eps": config.clip_eps, "clip_eps_high": config.clip_eps_high}
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


def _value_terms(
    policy: PolicyOutput, part: Experience, config: PolicyConfig
) -> tuple[Array, Metrics]:
    """[B, T] terms of the critic's loss, and metrics."""
    if policy.values is None:
        raise ValueError("the policy has no critic: advantage = gae needs one")
    assert part.values is not None and part.returns is not None
    return value_loss(
        policy.values,
        part.values,
        part.returns,
        part.rollout.batch.mask,
        clip_eps=config.value_clip_eps,
    )


def _weights(part: Experience, config: PolicyConfig) -> tuple[Array, Array]:
    """What each token counts in the loss, and what the sum is divided by."""
    batch = part.rollout.batch
    return loss_weights(
        batch.mask, batch.segment_ids, kind=config.reduction, length=config.length
    )


def _learns(state: PolicyState, config: PolicyConfig) -> Array | None:
    """0 while the critic learns alone, then 1; None where it never does."""
    if not config.value_warmup:
        return None
    return jnp.where(state.step < config.value_warmup, 0.0, 1.0)


def _ptx_scale(
    minibatch: Experience,
    demonstrations: TokenBatch | None,
    config: PolicyConfig,
    axis_name: str | None,
) -> Array | None:
    """c_ptx · count / tokens of the demonstrations, over devices and micro-batches: the
    sum of both losses is divided by the first one's count.
    """
    if demonstrations is None:
        return None
    sums = _weights(minibatch, config)[1], jnp.sum(demonstrations.mask)
    count, tokens = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return config.ptx_coef * count / jnp.maximum(tokens, 1)


def _kl_in_loss(config: PolicyConfig) -> bool:
    return config.kl.coef > 0 and config.kl.place == "loss"


def _check(
    experience: Experience, demonstrations: TokenBatch | None, config: PolicyConfig
) -> None:
    wrong, rows = None, experience.rollout.batch.tokens.shape[0]
    if config.kl.target is not None or _kl_in_loss(config):
        if experience.ref_logprobs is None:
            wrong = f"kl.coef = {config.kl.coef}: the experience has no reference"
    if config.advantage == "gae" and experience.values is None:
        wrong = "advantage = gae: the experience has no values of a critic"
    if bool(config.ptx_coef) != (demonstrations is not None):
        given = "no" if demonstrations is None else "there are"
        wrong = f"ptx_coef = {config.ptx_coef}: {given} demonstrations"
    elif demonstrations is not None and demonstrations.tokens.shape[0] != rows:
        count = demonstrations.tokens.shape[0]
        wrong = f"{count} demonstrations: expected one for each of {rows} rows"
    if wrong:
        raise ValueError(wrong)


def _adapt_kl_coef(
    state: PolicyState, experience: Experience, config: PolicyConfig
) -> PolicyState:
    if config.kl.target is None:
        return state
    assert experience.ref_logprobs is not None
    kl, episodes = episode_kl(experience.rollout, experience.ref_logprobs)
    adapted = adaptive_kl_update(
        state.kl_coef,
        kl / episodes,
        target=config.kl.target,
        horizon=config.kl.horizon,
        num_episodes=episodes,
    )
    # As with an update that is skipped: β would stay NaN for ever.
    known = jnp.isfinite(adapted)
    return state.replace(kl_coef=jnp.where(known, adapted, state.kl_coef))
