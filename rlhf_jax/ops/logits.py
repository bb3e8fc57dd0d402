"""What happens to logits before they become probabilities: temperature and truncation.

Truncated entries are -inf, so that the processors compose and their order is the order
in which they are called.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


def scale_by_temperature(logits: Array, temperature: float | Array) -> Array:
    """Divides logits by the sampling temperature: z / τ.

    Ziegler et al. 2019, arXiv:1909.08593 (τ = 0.7). Sampling and every log-prob (old,
    new, reference) divide here, so that the first ratio of PPO is 1.

    Args:
      logits: [..., V] float.
      temperature: τ > 0, a number or a float32 scalar array.

    Returns:
      [..., V] float32. No mask: entries are independent of one another.

    Raises:
      ValueError: if a temperature given as a number is not positive.

    >>> scale_by_temperature(jnp.array([1.0, 2.0]), 0.5).tolist()
    [2.0, 4.0]
    """
    _check_number("temperature", temperature, 0.0, float("inf"))
    return logits.astype(jnp.float32) / jnp.asarray(temperature, jnp.float32)


def top_k_mask(logits: Array, k: int) -> Array:
    """Keeps the k largest logits, the others become -inf.

    Fan et al. 2018, arXiv:1805.04833. Entries tied with the k-th largest are all kept:
    there may then be more than k.

    Args:
      logits: [..., V] float.
      k: how many to keep, 1 ≤ k ≤ V.

    Returns:
      [..., V] float32. No mask: rows are independent of one another.

    Raises:
      ValueError: if k is outside 1 … V.

    >>> top_k_mask(jnp.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
    [3.0, -inf, 2.0, 2.0]
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(
            f"top_k_mask: k = {k}, expected 1 … {logits.shape[-1]} (the vocabulary)"
        )
    logits = logits.astype(jnp.float32)
    return _keep_from(logits, jax.lax.top_k(logits, k)[0][..., -1:])


def top_p_mask(logits: Array, p: float | Array) -> Array:
    """Keeps the smallest set of tokens whose probability reaches p (nucleus sampling).

    Holtzman et al. 2019, arXiv:1904.09751. A token is kept while the more probable ones
    sum to less than p. The most probable token is always kept, and so are entries tied
    with the least probable token kept. p = 1 keeps every token of positive probability.

    Args:
      logits: [..., V] float.
      p: 0 < p ≤ 1, a number or a float32 scalar array.

    Returns:
      [..., V] float32. No mask: rows are independent of one another.

    Raises:
      ValueError: if a p given as a number is outside (0, 1].

    >>> kept = top_p_mask(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.6)
    >>> jnp.isfinite(kept).tolist()
    [True, True, False]
    """
    _check_number("p", p, 0.0, 1.0)
    logits = logits.astype(jnp.float32)
    ascending = jnp.sort(logits, axis=-1)
    # The mass of a token and all less probable ones, summed from the small end: the
    # equivalent 1 - Σ of the more probable ones would round the tail away.
    mass = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    kept = jnp.where(mass > 1.0 - p, ascending, jnp.inf)
    threshold = jnp.min(kept, axis=-1, keepdims=True)
    return _keep_from(logits, jnp.minimum(threshold, ascending[..., -1:]))


def min_p_mask(logits: Array, min_p: float | Array) -> Array:
    """Keeps tokens of probability pᵢ ≥ min_p · maxⱼ pⱼ.

    Nguyen et al. 2024, arXiv:2407.01082. In logits: zᵢ ≥ maxⱼ zⱼ + log min_p, without a
    sort or a softmax. Ties with the bound and with the maximum are kept.

    Args:
      logits: [..., V] float.
      min_p: 0 < min_p ≤ 1, a number or a float32 scalar array.

    Returns:
      [..., V] float32. No mask: rows are independent of one another.

    Raises:
      ValueError: if a min_p given as a number is outside (0, 1].

    >>> kept = min_p_mask(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.5)
    >>> jnp.isfinite(kept).tolist()
    [True, True, False]
    """
    _check_number("min_p", min_p, 0.0, 1.0)
    logits = logits.astype(jnp.float32)
    bound = jnp.log(jnp.asarray(min_p, jnp.float32))
    return _keep_from(logits, jnp.max(logits, axis=-1, keepdims=True) + bound)


def keep_only(logits: Array, kept: Array) -> Array:
    """-inf for the tokens that the sampler had left out.

    The policy under training is then renormalised over the set that its sampler drew
    from, so that their ratio is that of two distributions over the same tokens:
    DeepSeek-V3.2, arXiv:2512.02556, "keep sampling mask".

    Args:
      logits: [B, T, V] float, index t is for the token after t.
      kept: [B, T, ⌈V/8⌉] uint8, index t is about token t; bit v, the most significant
        of a byte first, says that token v was possible (`Rollout.kept`).

    Returns:
      [B, T, V] float32. The last column is about a token that does not exist, and is
      left as it is.

    >>> logits = jnp.array([[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]])
    >>> keep_only(logits, jnp.array([[[255], [0b01100000]]], jnp.uint8))[0, 0].tolist()
    [-inf, 2.0, 3.0]
    """
    next_kept = jnp.concatenate([kept[:, 1:], jnp.full_like(kept[:, :1], 255)], axis=1)
    possible = jnp.unpackbits(next_kept, axis=-1, count=logits.shape[-1])
    return jnp.where(possible == 1, logits.astype(jnp.float32), -jnp.inf)


def _keep_from(logits: Array, threshold: Array) -> Array:
    """Logits at or above a threshold [..., 1], -inf for the others."""
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def _check_number(name: str, value: Any, above: float, most: float) -> None:
    """Traced values cannot be checked; numbers can."""
    if isinstance(value, (int, float)) and not above < value <= most:
        raise ValueError(f"{name} = {value}, expected {above:g} < {name} ≤ {most:g}")
