"""Advantages: how much better a token was than what the critic expected."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


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
