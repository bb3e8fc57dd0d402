"""The policy's loss: surrogates whose gradient makes better tokens likelier."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum, segment_mean
from rlhf_jax.types import Array, Metrics


def policy_gradient_loss(
    logprobs: Array, advantages: Array, mask: Array
) -> tuple[Array, Metrics]:
    """The policy gradient's surrogate: Lₜ = −Âₜ log πₜ.

    Williams 1992, REINFORCE; as GPG with the advantages of a group: Chu et al. 2025,
    arXiv:2504.02546. Its gradient is right for tokens that the policy itself has
    just drawn; its value says nothing.

    Args:
      logprobs: [B, T] float nats, of the policy being trained.
      advantages: [B, T] float.
      mask: [B, T] bool, the policy's tokens.

    Returns:
      terms: [B, T] float32, 0 where masked; reduce them with ``loss_weights``.
      metrics: ``policy/loss``, mean over unmasked tokens. Those of the ratio come from
        ``ratio_metrics``.

    >>> logprobs, mask = jnp.array([[-1.0, -3.0]]), jnp.array([[True, True]])
    >>> policy_gradient_loss(logprobs, jnp.array([[2.0, -1.0]]), mask)[0].tolist()
    [[2.0, -3.0]]
    """
    chex.assert_rank([logprobs, advantages, mask], 2)
    chex.assert_equal_shape([logprobs, advantages, mask])
    logprobs, advantages = _unmasked(mask, logprobs, advantages)
    terms = -advantages * logprobs
    return terms, Metrics.of({"policy/loss": masked_sum(terms, mask)})


def ppo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Array, Metrics]:
    """Clipped surrogate: Lₜ = max(−Âₜrₜ, −Âₜ·clip(rₜ, 1−ε, 1+ε)), rₜ = πₜ/π_old,ₜ.

    Schulman et al. 2017, arXiv:1707.06347, eq. 7, with the sign of a loss. A larger
    bound above, 1+ε_high, leaves unlikely tokens room to grow: Yu et al. 2025 (DAPO),
    arXiv:2503.14476, §3.1. With a dual clip c the loss of a token with Âₜ < 0 is at
    most −c·Âₜ, however large its ratio: Ye et al. 2019, arXiv:1912.09729.

    No gradient is stopped: to update with fresh samples only, pass
    ``jax.lax.stop_gradient(logprobs)`` as ``old_logprobs``.

    Args:
      logprobs: [B, T] float nats, of the policy being trained.
      old_logprobs: [B, T] float nats, of the policy that drew the tokens.
      advantages: [B, T] float.
      mask: [B, T] bool, the policy's tokens.
      clip_eps: ε.
      clip_eps_high: ε_high of the upper bound; None: ε.
      dual_clip: c > 1, usually 3; None: no dual clip. TRL's ``delta`` is the same for
        c > 1+ε_high.

    Returns:
      terms: [B, T] float32, 0 where masked; reduce them with ``loss_weights``.
      metrics: over unmasked tokens, means ``policy/loss``, ``policy/clip_fraction``
        (clipping raised the loss), its parts ``policy/clip_fraction_low`` and ``_high``
        by the bound, ``policy/clip_fraction_dual`` (the dual clip lowered it), and
        those of ``ratio_metrics``.

    Raises:
      ValueError: if dual_clip is not above 1.

    >>> logprobs, old_logprobs = jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -3.0]])
    >>> ones, mask = jnp.ones((1, 2)), jnp.array([[True, True]])
    >>> terms, metrics = ppo_loss(logprobs, old_logprobs, ones, mask, clip_eps=0.5)
    >>> terms.tolist(), metrics.compute()["policy/clip_fraction"]  # ratios e and 1
    ([[-1.5, -1.0]], 0.5)
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"ppo_loss: dual_clip = {dual_clip}, expected more than 1")
    ratio, advantages = _ratio(logprobs, old_logprobs, advantages, mask)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_eps, 1.0 + high)
    terms = jnp.maximum(unclipped, clipped)
    raised = clipped > unclipped
    dual = jnp.zeros_like(raised)
    if dual_clip is not None:
        most = -dual_clip * advantages
        dual = (advantages < 0) & (terms > most)
        terms = jnp.where(dual, most, terms)
    means = {
        "policy/loss": terms,
        "policy/clip_fraction_dual": dual.astype(jnp.float32),
    }
    metrics = Metrics.of({name: masked_sum(x, mask) for name, x in means.items()})
    metrics += _clip_metrics(raised & (ratio < 1), raised & (ratio > 1), mask)
    return terms, metrics + ratio_metrics(logprobs, old_logprobs, mask)


def gspo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    segment_ids: Array | None = None,
    *,
    clip_eps: float = 3e-4,
    clip_eps_high: float | None = 4e-4,
) -> tuple[Array, Metrics]:
    """PPO's surrogate of a sequence's ratio: sᵢ = exp(mean over its tokens of log rₜ).

    Lₜ = max(−Âₜsᵢ, −Âₜ·clip(sᵢ, 1−ε, 1+ε_high)): the same number at every token of a
    sequence whose tokens have one advantage, so that ``loss_weights`` of kind
    "sequence" gives the paper's mean over sequences and its gradient.

    Zheng et al. 2025 (GSPO), arXiv:2507.18071, eqs. 5 and 7; the ranges of §5.1. The
    ratio is the geometric mean of the tokens' ratios: ranges are a thousandth of PPO's.

    Args:
      logprobs: [B, T] float nats, of the policy being trained.
      old_logprobs: [B, T] float nats, of the policy that drew the tokens.
      advantages: [B, T] float, usually one number a sequence.
      mask: [B, T] bool, the policy's tokens.
      segment_ids: [B, T] int32, 0 … T, equal for the tokens of a sequence; None: a row
        is one sequence.
      clip_eps: ε.
      clip_eps_high: ε_high of the upper bound; None: ε.

    Returns:
      terms: [B, T] float32, 0 where masked; reduce them with ``loss_weights``.
      metrics: those of ``ppo_loss`` with sᵢ for rₜ: means over unmasked tokens, where
        TRL takes them over sequences.

    >>> logprobs, old = jnp.log(jnp.array([[4.0, 1.0, 0.5]])), jnp.zeros((1, 3))
    >>> advantages, mask = -jnp.ones((1, 3)), jnp.full((1, 3), True)
    >>> ids = jnp.array([[1, 1, 2]])  # ratios √(4 · 1) and ½, the latter clipped
    >>> terms, _ = gspo_loss(logprobs, old, advantages, mask, ids, clip_eps=0.2)
    >>> [round(x, 3) for x in terms[0].tolist()]
    [2.0, 2.0, 0.8]
    """
    chex.assert_equal_shape([logprobs, old_logprobs, mask])
    logprobs, old_logprobs = _unmasked(mask, logprobs, old_logprobs)
    log_ratio = segment_mean(logprobs - old_logprobs, mask, segment_ids)
    return ppo_loss(
        log_ratio,
        jnp.zeros_like(log_ratio),
        advantages,
        mask,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
    )


def cispo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    max_ratio: float = 5.0,
    min_ratio: float | None = None,
) -> tuple[Array, Metrics]:
    """REINFORCE with clipped importance weights: Lₜ = −sg(clip(rₜ))·Âₜ·log πₜ.

    sg stops the gradient: where ``ppo_loss`` gives a clipped token none, here every
    token keeps one, of bounded weight.

    MiniMax 2025 (CISPO), arXiv:2506.13585, eqs. 4 and 5, where max_ratio is 1+ε_high
    and no lower bound is in force. The default is what TRL recommends, after Khatri et
    al. 2025 (ScaleRL), arXiv:2510.13786.

    Args:
      logprobs: [B, T] float nats, of the policy being trained.
      old_logprobs: [B, T] float nats, of the policy that drew the tokens.
      advantages: [B, T] float.
      mask: [B, T] bool, the policy's tokens.
      max_ratio: the largest weight; the bound itself, not its distance from 1.
      min_ratio: the smallest weight; None: no bound.

    Returns:
      terms: [B, T] float32, 0 where masked; reduce them with ``loss_weights``.
      metrics: over unmasked tokens, means ``policy/loss``, ``policy/clip_fraction``
        (the ratio is outside the bounds, whatever the advantage's sign; TRL counts
        positive ones only), its parts ``policy/clip_fraction_low`` and ``_high``, and
        those of ``ratio_metrics``.

    >>> logprobs, old_logprobs = jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -3.0]])
    >>> ones, mask = jnp.ones((1, 2)), jnp.array([[True, True]])
    >>> cispo_loss(logprobs, old_logprobs, ones, mask, max_ratio=2.0)[0].tolist()
    [[2.0, 3.0]]
    """
    ratio, advantages = _ratio(logprobs, old_logprobs, advantages, mask)
    (chosen,) = _unmasked(mask, logprobs)
    weight = jax.lax.stop_gradient(jnp.clip(ratio, min_ratio, max_ratio))
    terms = -weight * advantages * chosen
    metrics = Metrics.of({"policy/loss": masked_sum(terms, mask)})
    metrics += _clip_metrics(weight > ratio, weight < ratio, mask)
    return terms, metrics + ratio_metrics(logprobs, old_logprobs, mask)


def ratio_metrics(logprobs: Array, old_logprobs: Array, mask: Array) -> Metrics:
    """How far the policy is from the one that drew the tokens: rₜ = πₜ/π_old,ₜ.

    approx_kl = ½ (log r)², the estimate k2: Schulman 2020, "Approximating KL
    divergence" (joschu.net/blog/kl-approx.html).

    Args:
      logprobs: [B, T] float nats, of the policy being trained.
      old_logprobs: [B, T] float nats, of the policy that drew the tokens.
      mask: [B, T] bool, the policy's tokens.

    Returns:
      Means over unmasked tokens ``policy/approx_kl`` and ``policy/ratio``, and the
      maximum ``policy/ratio_max`` (0 if all is masked).

    >>> same, mask = jnp.array([[-1.0]]), jnp.array([[True]])
    >>> ratio_metrics(same, same, mask).compute()
    {'policy/approx_kl': 0.0, 'policy/ratio': 1.0, 'policy/ratio_max': 1.0}
    """
    chex.assert_equal_shape([logprobs, old_logprobs, mask])
    logprobs, old_logprobs = _unmasked(mask, logprobs, old_logprobs)
    log_ratio = logprobs - old_logprobs
    ratio = jnp.exp(log_ratio)
    means = {"policy/approx_kl": 0.5 * jnp.square(log_ratio), "policy/ratio": ratio}
    return Metrics.of(
        {name: masked_sum(x, mask) for name, x in means.items()},
        maxima={"policy/ratio_max": jnp.max(jnp.where(mask, ratio, 0.0))},
    )


def _clip_metrics(low: Array, high: Array, mask: Array) -> Metrics:
    """Shares of unmasked tokens clipped at the lower and the upper bound."""
    means = {
        "policy/clip_fraction": low | high,
        "policy/clip_fraction_low": low,
        "policy/clip_fraction_high": high,
    }
    share = lambda x: masked_sum(x.astype(jnp.float32), mask)
    return Metrics.of({name: share(x) for name, x in means.items()})


def _ratio(logprobs, old_logprobs, advantages, mask) -> tuple[Array, Array]:
    """Checks the arguments; ratio and advantages, 1 and 0 where masked."""
    chex.assert_rank([logprobs, old_logprobs, advantages, mask], 2)
    chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
    logprobs, old_logprobs, advantages = _unmasked(
        mask, logprobs, old_logprobs, advantages
    )
    return jnp.exp(logprobs - old_logprobs), advantages


def _unmasked(mask: Array, *arrays: Array) -> tuple[Array, ...]:
    """float32, 0 where masked."""
    chex.assert_type(mask, bool)
    return tuple(jnp.where(mask, x, 0.0).astype(jnp.float32) for x in arrays)
