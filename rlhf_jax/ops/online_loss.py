"""What online preference optimisation has besides the loss of a pair."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


def xpo_bonus(logps: Array, *, alpha: float) -> Array:
    """What makes a policy explore: α log π(ỹ), ỹ drawn from the reference.

    Xie et al. 2024 (XPO), arXiv:2405.21046, algorithm 1: added to the DPO loss of the
    pair (y, ỹ), y drawn from the policy. Lowering it takes probability from what the
    reference would say. With α > 0 the optimum is not that of the KL-regularised
    reward; the paper lets α go to 0 as the pairs become more.

    Args:
      logps: [B] float nats, log π of the reference's completions, summed over tokens.
      alpha: α ≥ 0, loss units a nat.

    Returns:
      [B] float32. No mask: rows are independent of one another.

    Raises:
      ValueError: if alpha is negative.

    >>> xpo_bonus(jnp.array([-2.0]), alpha=0.5).tolist()
    [-1.0]
    """
    if not alpha >= 0:
        raise ValueError(f"xpo_bonus: alpha = {alpha}, expected 0 or more")
    chex.assert_rank(logps, 1)
    return alpha * logps.astype(jnp.float32)


def nash_md_loss(
    logps: Array, ref_logps: Array, win_probs: Array, *, beta: float
) -> Array:
    """−sg(P(y ≻ y′) − ½ − β log π(y)/π_ref(y)) · log π(y), y drawn from the policy.

    Munos et al. 2023 (Nash-MD-PG), arXiv:2312.00886, section 7; its τ is our β. y′ is
    drawn from the mixture π^(1−α) π_ref^α, see ``sampling.mixture_apply``; ½ changes
    the variance only. The gradient in expectation is that of P(π ≻ π′) − β KL(π ‖
    π_ref), π′ held fixed. sg stops the gradient.

    TRL 0.26 multiplies each token's log-ratio with that token's log-prob alone, which
    leaves out what a token does to the KL of those after it; for completions of one
    token it is the same.

    Args:
      logps: [B] float nats, log π of the policy's own completions, summed over tokens.
      ref_logps: [B] float nats, of the reference policy.
      win_probs: [B] float, P(y ≻ y′), 0 to 1: σ of the difference of two scores, or
        what a judge says.
      beta: β ≥ 0: how strongly the policy is held to the reference, 1/nats.

    Returns:
      [B] float32, whose gradient is meant, not its value. No mask: rows are independent
      of one another.

    Raises:
      ValueError: if beta is negative.

    >>> half, sure = jnp.array([-1.0]), jnp.array([1.0])
    >>> nash_md_loss(half, half, sure, beta=0.1).tolist()
    [0.5]
    """
    if not beta >= 0:
        raise ValueError(f"nash_md_loss: beta = {beta}, expected 0 or more")
    chex.assert_rank(logps, 1)
    chex.assert_equal_shape([logps, ref_logps, win_probs])
    logps, ref_logps, win_probs = (
        x.astype(jnp.float32) for x in (logps, ref_logps, win_probs)
    )
    advantages = win_probs - 0.5 - beta * (logps - ref_logps)
    return -jax.lax.stop_gradient(advantages) * logps
