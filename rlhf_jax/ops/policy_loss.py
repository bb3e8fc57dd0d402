"""The policy's loss."""

import chex
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.types import Array, Metrics


def ppo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_eps: float = 0.2,
) -> tuple[Array, Metrics]:
    """Clipped surrogate: Lₜ = max(−Âₜrₜ, −Âₜ·clip(rₜ, 1−ε, 1+ε)), rₜ = πₜ/π_old,ₜ.

    Schulman et al. 2017, arXiv:1707.06347, eq. 7, with the sign of a loss.

    No gradient is stopped: to update with fresh samples only, pass
    ``jax.lax.stop_gradient(logprobs)`` as ``old_logprobs``.

    Args:
      logprobs: [B, T] float nats, of the policy being trained.
      old_logprobs: [B, T] float nats, of the policy that drew the tokens.
      advantages: [B, T] float.
      mask: [B, T] bool, the policy's tokens.
      clip_eps: ε.

    Returns:
      terms: [B, T] float32, 0 where masked; reduce them with ``masked_mean``.
      metrics: over unmasked tokens, means ``policy/loss``, ``policy/approx_kl``
        (½(log π − log π_old)²), ``policy/clip_fraction`` (clipping raised the loss) and
        ``policy/ratio``, and the maximum ``policy/ratio_max`` (0 if all is masked).

    >>> logprobs, old_logprobs = jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -3.0]])
    >>> ones, mask = jnp.ones((1, 2)), jnp.array([[True, True]])
    >>> terms, metrics = ppo_loss(logprobs, old_logprobs, ones, mask, clip_eps=0.5)
    >>> terms.tolist(), metrics.compute()["policy/clip_fraction"]  # ratios e and 1
    ([[-1.5, -1.0]], 0.5)
    """
    chex.assert_rank([logprobs, old_logprobs, advantages, mask], 2)
    chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
    chex.assert_type(mask, bool)
    log_ratio = logprobs.astype(jnp.float32) - old_logprobs.astype(jnp.float32)
    log_ratio = jnp.where(mask, log_ratio, 0.0)
    advantages = jnp.where(mask, advantages, 0.0).astype(jnp.float32)

    ratio = jnp.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    terms = jnp.maximum(unclipped, clipped)

    means = {
        "policy/loss": terms,
        "policy/approx_kl": 0.5 * jnp.square(log_ratio),
        "policy/clip_fraction": (clipped > unclipped).astype(jnp.float32),
        "policy/ratio": ratio,
    }
    return terms, Metrics.of(
        {name: masked_sum(x, mask) for name, x in means.items()},
        maxima={"policy/ratio_max": jnp.max(jnp.where(mask, ratio, 0.0))},
    )
