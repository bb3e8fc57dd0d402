"""Rotary positions: how far each pair of a head's entries turns at each token.

Axes in names: B rows, T tokens, H heads, d head width, F = rotated pairs.
"""

import math

import jax.numpy as jnp

from rlhf_jax.models.config import RopeConfig
from rlhf_jax.types import Array


def rotary(
    positions: Array, d_head: int, rope: RopeConfig, lengths: Array | None = None
) -> tuple[Array, Array]:
    """Angles of rotary positions: cos and sin of t·θ^(−2i/d), stretched as asked.

    Su et al. 2021, arXiv:2104.09864; for ``rope.kind`` see `RopeConfig`.

    Args:
      positions: [B, T] int32.
      d_head: width d of a head.
      rope: base and stretching.
      lengths: [B, T] int32, tokens so far of the sequence that each token belongs to;
        only ``dynamic`` reads them.

    Returns:
      cos and sin, both [B, T, F] float32.

    >>> cos, sin = rotary(jnp.array([[0, 1]]), 2, RopeConfig())
    >>> [round(v, 3) for v in (*cos.ravel().tolist(), *sin.ravel().tolist())]
    [1.0, 0.54, 0.0, 0.841]
    """
    dims = rope.dims or d_head
    exponents = -jnp.arange(0, dims, 2, dtype=jnp.float32) / dims
    if rope.kind == "dynamic":
        assert lengths is not None  # the trunk counts them for this kind
        theta = dynamic_theta(lengths, dims, rope)
        frequencies = theta[:, :, None] ** exponents[None, None, :]
    else:
        frequencies = _stretch(rope.theta**exponents, dims, rope)[None, None, :]
    angles = positions[:, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.attention_factor == 1.0:
        return cos, sin
    return cos * rope.attention_factor, sin * rope.attention_factor


def dynamic_theta(lengths: Array, dims: int, rope: RopeConfig) -> Array:
    """The NTK-aware base θ·(f·n/n₀ − (f − 1))^(d/(d−2)) for sequences of n tokens.

    Described in section 3.1 of Peng et al. 2023, arXiv:2309.00071. A sequence within
    the original length n₀ keeps θ.

    >>> rope = RopeConfig(kind="dynamic", factor=2.0, original_length=8)
    >>> dynamic_theta(jnp.array([4, 8, 16]), 4, rope).round(1).tolist()
    [10000.0, 10000.0, 90000.0]
    """
    length = jnp.maximum(lengths, rope.original_length).astype(jnp.float32)
    grown = rope.factor * length / rope.original_length - (rope.factor - 1)
    return rope.theta * grown ** (dims / (dims - 2))


def _stretch(frequencies: Array, dims: int, rope: RopeConfig) -> Array:
    """Frequencies [F] as ``rope.kind`` changes them."""
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    if rope.kind == "yarn":
        return _yarn(frequencies, dims, rope)
    return frequencies


def _llama3(frequencies: Array, rope: RopeConfig) -> Array:
    """Long waves by the factor, short ones not, between them a straight line."""
    turns = rope.original_length * frequencies / (2 * math.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * frequencies / rope.factor + kept * frequencies


def _yarn(frequencies: Array, dims: int, rope: RopeConfig) -> Array:
    """As llama3, with a ramp over the index of the pair instead of its frequency."""

    def pair_of(turns: float) -> float:
        """The pair (a real number) that turns so often in the original length."""
        ratio = rope.original_length / (2 * math.pi * turns)
        return dims * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001  # equal limits make a step, not a division by 0
    pairs = jnp.arange(dims // 2, dtype=jnp.float32)
    kept = 1 - jnp.clip((pairs - low) / width, 0.0, 1.0)
    return (1 - kept) * frequencies / rope.factor + kept * frequencies


def rotate(x_BTHd: Array, cos_BTF: Array, sin_BTF: Array) -> Array:
    """Turns the pairs (xᵢ, xᵢ₊F) by their angles: the half-split order of Llama.

    Su et al. 2021, arXiv:2104.09864, eq. 34, with the pairs F apart instead of
    adjacent. Entries from 2F on are left as they are.

    Args:
      x_BTHd: [B, T, H, d] queries or keys.
      cos_BTF: [B, T, F] float32; as sin_BTF.
      sin_BTF: [B, T, F] float32.

    Returns:
      [B, T, H, d] of x's dtype.

    >>> quarter = jnp.ones((1, 1, 1))  # sin of a right angle
    >>> rotate(jnp.array([[[[3.0, 4.0, 5.0]]]]), 0 * quarter, quarter).ravel().tolist()
    [-4.0, 3.0, 5.0]
    """
    pairs = cos_BTF.shape[-1]
    rotated, kept = x_BTHd[..., : 2 * pairs], x_BTHd[..., 2 * pairs :]
    first, second = jnp.split(rotated.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTF[:, :, None, :], sin_BTF[:, :, None, :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    turned = jnp.concatenate(turned, axis=-1).astype(x_BTHd.dtype)
    return turned if kept.shape[-1] == 0 else jnp.concatenate([turned, kept], axis=-1)
