"""Weights for rollouts that another policy than the trained one has drawn."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.masking import segment_sum
from rlhf_jax.types import Array

ImportanceKind = Literal["truncate", "mask"]
ImportanceLevel = Literal["token", "sequence"]


def importance_weights(
    logprobs: Array,
    sampler_logprobs: Array,
    mask: Array,
    *,
    kind: ImportanceKind = "truncate",
    level: ImportanceLevel = "token",
    cap: float = 2.0,
    segment_ids: Array | None = None,
) -> Array:
    """Corrects for a sampler that lags behind: w = π/μ, bounded above by a cap C.

    μ is the policy that sampled, n updates old or computed by another engine; the terms
    of a loss are multiplied by w. At level "token" wₜ = πₜ/μₜ; at level "sequence" w is
    the product over the sequence's tokens, the same at each of them.

    * truncate: min(w, C), the bias that keeps the variance finite: Espeholt et al. 2018
      (IMPALA), arXiv:1802.01561, §4.1, as "truncated importance sampling" in RLHF.
    * mask: w where w ≤ C, else 0: a token, or a sequence, too far off has no part.

    TRL: ``vllm_importance_sampling_mode`` "token_truncate", "sequence_mask", … with
    ``vllm_importance_sampling_clip_max`` = C and no ``clip_min``.

    Args:
      logprobs: [B, T] float nats, of the policy when the update begins (old_logprobs
        of the loss), or of the policy being trained if the loss has no ratio.
      sampler_logprobs: [B, T] float nats, of the policy that drew the tokens.
      mask: [B, T] bool, the policy's tokens.
      kind: what becomes of weights above the cap.
      level: whether a token or a sequence is weighted.
      cap: C > 0.
      segment_ids: [B, T] int32, 0 … T, equal for the tokens of a sequence; None: a row
        is one sequence. For "token" it changes nothing.

    Returns:
      [B, T] float32, 0 where masked; no gradient flows through it.

    Raises:
      ValueError: if kind or level is unknown, or cap is not positive.

    >>> logprobs, mask = jnp.log(jnp.array([[0.5, 0.9]])), jnp.array([[True, True]])
    >>> sampler = jnp.log(jnp.array([[0.1, 0.9]]))  # ratios 5 and 1
    >>> importance_weights(logprobs, sampler, mask, cap=2.0).tolist()
    [[2.0, 1.0]]
    >>> importance_weights(logprobs, sampler, mask, kind="mask", cap=2.0).tolist()
    [[0.0, 1.0]]
    """
    _check(kind, level, cap)
    chex.assert_rank([logprobs, sampler_logprobs, mask], 2)
    chex.assert_equal_shape([logprobs, sampler_logprobs, mask])
    chex.assert_type(mask, bool)
    log_weight = logprobs.astype(jnp.float32) - sampler_logprobs.astype(jnp.float32)
    log_weight = jnp.where(mask, log_weight, 0.0)
    if level == "sequence":
        log_weight = segment_sum(log_weight, mask, segment_ids)
    weight = jnp.exp(log_weight)
    if kind == "truncate":
        weight = jnp.minimum(weight, cap)
    else:
        weight = jnp.where(weight <= cap, weight, 0.0)
    return jax.lax.stop_gradient(jnp.where(mask, weight, 0.0))


def _check(kind: str, level: str, cap: float) -> None:
    name = "importance_weights"
    if kind not in get_args(ImportanceKind):
        raise ValueError(f"{name}: kind = {kind!r}, expected truncate or mask")
    if level not in get_args(ImportanceLevel):
        raise ValueError(f"{name}: level = {level!r}, expected token or sequence")
    if not cap > 0:
        raise ValueError(f"{name}: cap = {cap}, expected more than 0")
