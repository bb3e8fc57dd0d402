"""KL divergence from the reference policy: estimates, penalty, coefficient."""

from typing import Literal

import chex
import jax.numpy as jnp

from rlhf_jax.masking import last_token_mask
from rlhf_jax.types import Array

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(
    logprobs: Array,
    ref_logprobs: Array,
    *,
    kind: KLKind = "k1",
    mask: Array | None = None,
) -> Array:
    """Single-sample estimates of KL(π ‖ π_ref), one a token drawn from π.

    With d = log π_ref − log π:

    * k1 = −d                unbiased, may be negative
    * k2 = ½ d²              biased, never negative; its gradient is that of the KL
    * k3 = eᵈ − 1 − d        unbiased, never negative

    Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html); k3
    is the penalty of GRPO, arXiv:2402.03300.

    As a term of the loss, with tokens that π has just drawn, what counts is the mean
    gradient, which is that of

    * k1    nothing: ∇log π, 0 on average
    * k2    KL(π ‖ π_ref) of the token: −d ∇log π
    * k3    KL(π_ref ‖ π) of the token: (1 − eᵈ) ∇log π, k2's while d is small

    In the reward the place is k1's: its policy gradient is that of KL(π ‖ π_ref) of the
    whole sequence. Tang and Munos 2025, arXiv:2506.09477; Liu et al. 2025,
    arXiv:2510.01555. TRL multiplies its k3 by the ratio (``use_bias_correction_kl``),
    whose gradient, before the first update, is k2's.

    Args:
      logprobs: [B, T] float nats, of the policy that drew the tokens.
      ref_logprobs: [B, T] float nats, of the reference policy.
      kind: which estimate.
      mask: [B, T] bool, or None if every token counts.

    Returns:
      [B, T] float32 nats, 0 where masked.

    Raises:
      ValueError: if kind is none of the three.

    >>> logprobs, ref_logprobs = jnp.array([[-1.0]]), jnp.array([[-2.0]])
    >>> k3 = kl_estimate(logprobs, ref_logprobs, kind="k3")  # 1/e - 1 + 1
    >>> round(k3.item(), 3)
    0.368
    """
    chex.assert_rank([logprobs, ref_logprobs], 2)
    chex.assert_equal_shape([logprobs, ref_logprobs])
    d = ref_logprobs.astype(jnp.float32) - logprobs.astype(jnp.float32)
    if mask is not None:
        chex.assert_equal_shape([logprobs, mask])
        chex.assert_type(mask, bool)
        d = jnp.where(mask, d, 0.0)
    match kind:
        case "k1":
            return -d
        case "k2":
            return 0.5 * jnp.square(d)
        case "k3":
            return jnp.expm1(d) - d
        case _:
            raise ValueError(f"kl_estimate: kind = {kind!r}, expected k1, k2 or k3")


def kl_penalized_rewards(
    scores: Array,
    logprobs: Array,
    ref_logprobs: Array,
    mask: Array,
    *,
    kl_coef: float | Array,
    kind: KLKind = "k1",
) -> Array:
    """Rewards of PPO: rₜ = −β·KLₜ, plus the score at the response's last token.

    Ziegler et al. 2019, arXiv:1909.08593, eq. 2.

    Args:
      scores: [B] float, one a sequence.
      logprobs: [B, T] float nats, of the policy that drew the tokens.
      ref_logprobs: [B, T] float nats, of the reference policy.
      mask: [B, T] bool, the policy's tokens; may have holes.
      kl_coef: β in score units a nat, a number or a float32 scalar array.
      kind: the estimate of the KL divergence, see ``kl_estimate``.

    Returns:
      [B, T] float32, 0 where masked. The score of a row with nothing unmasked has no
      token to sit on: the row is 0.

    Raises:
      ValueError: if kind is unknown.

    >>> logprobs, ref = jnp.full((1, 3), -1.0), jnp.full((1, 3), -3.0)
    >>> mask = jnp.array([[True, True, False]])
    >>> kl_penalized_rewards(jnp.array([5.0]), logprobs, ref, mask, kl_coef=0.5)
    Array([[-1.,  4.,  0.]], dtype=float32)
    """
    chex.assert_rank([scores, mask], [1, 2])
    chex.assert_equal_shape_prefix([scores, mask], 1)
    kl = kl_estimate(logprobs, ref_logprobs, kind=kind, mask=mask)
    scores = scores.astype(jnp.float32)[:, None]
    at_last = jnp.where(last_token_mask(mask), scores, 0.0)
    return at_last - jnp.asarray(kl_coef, jnp.float32) * kl


def adaptive_kl_update(
    kl_coef: float | Array,
    observed_kl: float | Array,
    *,
    target: float,
    horizon: float,
    num_episodes: int | Array,
) -> Array:
    """Steers the KL coefficient towards a target: β ← β·(1 + e·n/h).

    e = clip(KL/target − 1, −0.2, 0.2). Ziegler et al. 2019, arXiv:1909.08593, §2.2
    (target 6 nats an episode, horizon 10,000 episodes).

    Args:
      kl_coef: β, scalar.
      observed_kl: nats an episode (summed over its tokens, averaged over episodes),
        scalar.
      target: the KL divergence wanted, nats an episode.
      horizon: h, in episodes; larger is slower.
      num_episodes: n, episodes since the last update.

    Returns:
      float32 scalar. No mask.

    >>> coef = adaptive_kl_update(0.15, 12.0, target=6, horizon=1000, num_episodes=50)
    >>> round(coef.item(), 4)  # 0.15 · (1 + 0.2 · 50 / 1000)
    0.1515
    """
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
    observed_kl = jnp.asarray(observed_kl, jnp.float32)
    chex.assert_rank([kl_coef, observed_kl], 0)
    error = jnp.clip(observed_kl / target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)
