"""Advantages: how much better a token, or a response, was than what was expected.

What is expected comes from a critic (GAE), from other responses to the same prompt, or
nowhere (returns). See also ``masking.masked_whiten``.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array

GroupScale = Literal["std", "none", "batch"]


def gae_advantages(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Array, Array]:
    """Generalised advantage estimation over the unmasked tokens of each row.

    δₜ = rₜ + γ·V₍t'₎ − Vₜ and Âₜ = δₜ + γλ·Â₍t'₎, where t' is the next *unmasked* token
    of the row, and V and Â after the last one are 0. Masked tokens take no time: the
    prompt, padding on either side, and what an environment wrote inside a response.

    Schulman et al. 2015, arXiv:1506.02438, eq. 16.

    Args:
      rewards: [B, T] float, for emitting token t.
      values: [B, T] float, of the state before token t.
      mask: [B, T] bool, the policy's tokens; may have holes.
      gamma: γ, discount a token.
      lam: λ, 0 = one-step error, 1 = return minus value.

    Returns:
      advantages: [B, T] float32, 0 where masked.
      returns: [B, T] float32, advantages + values, 0 where masked: the critic's target.

    >>> mask = jnp.array([[True, False, True]])  # the token in the middle takes no time
    >>> rewards, values = jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[0.5, 9.0, 1.0]])
    >>> gae_advantages(rewards, values, mask, lam=0.5)[0].tolist()
    [[2.0, 0.0, 1.0]]
    """
    chex.assert_rank([rewards, values, mask], 2)
    chex.assert_equal_shape([rewards, values, mask])
    chex.assert_type(mask, bool)
    rewards = jnp.where(mask, rewards, 0.0).astype(jnp.float32)
    values = jnp.where(mask, values, 0.0).astype(jnp.float32)

    def step(after: tuple[Array, Array], token: tuple[Array, Array, Array]):
        next_value, next_advantage = after
        reward, value, unmasked = token
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * next_advantage
        before = (
            jnp.where(unmasked, value, next_value),
            jnp.where(unmasked, advantage, next_advantage),
        )
        return before, jnp.where(unmasked, advantage, 0.0)

    zeros = jnp.zeros_like(rewards[:, 0])
    by_token = (rewards.T, values.T, mask.T)
    _, advantages = jax.lax.scan(step, (zeros, zeros), by_token, reverse=True)
    return advantages.T, advantages.T + values


def discounted_returns(rewards: Array, mask: Array, *, gamma: float = 1.0) -> Array:
    """Reward to go over the unmasked tokens of each row: Gₜ = rₜ + γ·G₍t'₎.

    t' is the next *unmasked* token, as in ``gae_advantages``, of which this is the case
    V = 0, λ = 1. Sutton and Barto 2018, §3.3.

    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262) takes KL-penalised rewards, γ = 1,
    and then ``masked_whiten`` over the global batch. Its variant with a baseline takes
    ``group_advantages`` with scale "none", at every token, and then ``masked_whiten``.

    Args:
      rewards: [B, T] float, for emitting token t.
      mask: [B, T] bool, the policy's tokens; may have holes.
      gamma: γ, discount a token.

    Returns:
      [B, T] float32, 0 where masked.

    >>> mask = jnp.array([[True, False, True]])  # the token in the middle takes no time
    >>> discounted_returns(jnp.array([[1.0, 9.0, 2.0]]), mask, gamma=0.5).tolist()
    [[2.0, 0.0, 2.0]]
    """
    zeros = jnp.zeros(rewards.shape, jnp.float32)
    return gae_advantages(rewards, zeros, mask, gamma=gamma, lam=1.0)[0]


def remax_advantages(scores: Array, greedy_scores: Array) -> Array:
    """How much better a sampled response is than the greedy one: Âᵢ = sᵢ − s(greedy).

    Li et al. 2023 (ReMax), arXiv:2310.10505, §3.2. The baseline does not depend on what
    was sampled, so that the policy gradient has no bias.

    Args:
      scores: [B] float, of responses drawn from the policy.
      greedy_scores: [B] float, of the policy's greedy responses to the same prompts.

    Returns:
      [B] float32 in score units, for every token of the response. No mask: every row
      counts.

    >>> remax_advantages(jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0])).tolist()
    [-1.0, 1.0]
    """
    chex.assert_rank([scores, greedy_scores], 1)
    chex.assert_equal_shape([scores, greedy_scores])
    return scores.astype(jnp.float32) - greedy_scores.astype(jnp.float32)


def group_advantages(
    scores: Array, *, group_size: int, scale: GroupScale = "std"
) -> Array:
    """How much better a response is than its group: Âᵢ = (sᵢ − μ) / (σ + 10⁻⁴).

    μ is the mean over the G responses to the same prompt. σ is their standard
    deviation for scale "std", that of the whole batch for "batch", and for "none"
    nothing is divided. It is the unbiased one (divides by G − 1) and 10⁻⁴ is added to
    it, not to the variance, as in TRL.

    Shao et al. 2024 (GRPO), arXiv:2402.03300, §4.1.2; without the division, which
    favours prompts that are nearly always or never solved: Liu et al. 2025 (Dr. GRPO),
    arXiv:2503.20783, §3.1.

    Args:
      scores: [B] float, one a response; rows of a group are adjacent.
      group_size: G, responses a prompt; divides B.
      scale: what the lead over the group is divided by.

    Returns:
      [B] float32, for every token of the response; exactly 0 in a group of equal
      scores. No mask: every row counts.

    Raises:
      ValueError: if scale is unknown, or group_size is below 2 or does not divide B.

    >>> scores = jnp.array([1.0, 3.0, 5.0, 5.0])
    >>> group_advantages(scores, group_size=2, scale="none").tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """
    if scale not in get_args(GroupScale):
        raise ValueError(
            f"group_advantages: scale = {scale!r}, expected std, none or batch"
        )
    groups = _groups(scores, group_size)
    # From the first score on: equal ones then cancel exactly, whatever their size.
    lead = groups - groups[:, :1]
    lead = lead - jnp.mean(lead, axis=1, keepdims=True)
    if scale == "std":
        lead = lead / (_unbiased_std(groups) + 1e-4)
    elif scale == "batch":
        lead = lead / (_unbiased_std(groups.reshape(1, -1)) + 1e-4)
    return lead.reshape(-1)


def leave_one_out_advantages(scores: Array, *, group_size: int) -> Array:
    """How much better a response is than the others of its group: sᵢ − mean(sⱼ, j ≠ i).

    Ahmadian et al. 2024 (RLOO), arXiv:2402.14740, §3.3. The baseline of a response does
    not depend on it, so that the policy gradient has no bias; this is G/(G − 1) times
    ``group_advantages`` with scale "none".

    Args:
      scores: [B] float, one a response; rows of a group are adjacent.
      group_size: G, responses a prompt; divides B.

    Returns:
      [B] float32 in score units, for every token of the response; exactly 0 in a group
      of equal scores. No mask: every row counts.

    Raises:
      ValueError: if group_size is below 2 or does not divide B.

    >>> scores = jnp.array([1.0, 3.0, 5.0])
    >>> leave_one_out_advantages(scores, group_size=3).tolist()
    [-3.0, 0.0, 3.0]
    """
    lead = group_advantages(scores, group_size=group_size, scale="none")
    return lead * (group_size / (group_size - 1))


def informative_groups(scores: Array, *, group_size: int) -> Array:
    """Whether a response's group has anything to teach: its scores are not all equal.

    Dynamic sampling draws prompts until there are enough such groups: Yu et al. 2025
    (DAPO), arXiv:2503.14476, §3.2. In the others every advantage is 0, and so is the
    gradient; their tokens would only dilute a mean over tokens.

    Args:
      scores: [B] float, one a response; rows of a group are adjacent.
      group_size: G, responses a prompt; divides B.

    Returns:
      [B] bool, the same for all rows of a group. No mask: every row counts.

    Raises:
      ValueError: if group_size is below 2 or does not divide B.

    >>> scores = jnp.array([0.0, 1.0, 1.0, 1.0])
    >>> informative_groups(scores, group_size=2).tolist()
    [True, True, False, False]
    """
    groups = _groups(scores, group_size)
    differ = jnp.any(groups != groups[:, :1], axis=1)
    return jnp.repeat(differ, group_size)


def _groups(scores: Array, group_size: int) -> Array:
    """[B / G, G] float32."""
    chex.assert_rank(scores, 1)
    if group_size < 2 or scores.shape[0] % group_size:
        raise ValueError(
            f"group_size = {group_size} of {scores.shape[0]} scores: expected 2 or "
            "more, and a divisor of the number of scores"
        )
    return scores.astype(jnp.float32).reshape(-1, group_size)


def _unbiased_std(x: Array) -> Array:
    """[N, 1] standard deviation of each row, its gradient 0 where the row is equal."""
    shifted = x - x[:, :1]
    var = jnp.var(shifted, axis=1, ddof=1, keepdims=True)
    return jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1.0)), 0.0)
