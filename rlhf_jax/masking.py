"""Masked sums, means and whitening, and the masks of responses.

The rule everywhere: what lies under a False mask may be anything, NaN and Inf included,
and changes neither value nor gradient. ``jnp.where`` therefore comes before arithmetic.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


def masked_sum(x: Array, mask: Array) -> tuple[Array, Array]:
    """Sum of the unmasked entries and how many they are: Σ mₜxₜ and Σ mₜ.

    No reference. The pair is what combines exactly over devices and micro-batches.

    Args:
      x: float array of any shape.
      mask: bool, same shape; False entries of x may be anything.

    Returns:
      (sum, count), two float32 scalars; (0, 0) if all is masked.

    >>> masked_sum(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True]))
    (Array(4., dtype=float32), Array(2., dtype=float32))
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type(mask, bool)
    total = jnp.sum(jnp.where(mask, x, 0.0), dtype=jnp.float32)
    return total, jnp.sum(mask, dtype=jnp.float32)


def masked_mean(x: Array, mask: Array, *, axis_name: str | None = None) -> Array:
    """Mean of the unmasked entries of the whole global batch: Σ mₜxₜ / Σ mₜ.

    No reference. With ``axis_name`` numerator and count are summed over the devices of
    that mapped axis before the one division, so that ragged masks, and devices without
    a single unmasked entry, count as they should. The mean of per-device masked means
    is something else. Under ``jax.pmap`` the gradient of this mean is the ``pmean`` of
    the devices' gradients.

    Args:
      x: float array of any shape.
      mask: bool, same shape; False entries of x may be anything.
      axis_name: the mapped axis to reduce over, or None.

    Returns:
      float32 scalar; 0 (with gradient 0) if all is masked.

    >>> x, mask = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True])
    >>> float(masked_mean(x, mask))
    2.0
    """
    total, count = masked_sum(x, mask)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1.0)


def masked_whiten(
    x: Array,
    mask: Array,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    axis_name: str | None = None,
) -> Array:
    """Whitens the unmasked entries: (x − μ) / √(σ² + ε), biased variance.

    Ziegler et al. 2019, arXiv:1909.08593: advantages with the mean shifted, rewards
    divided by the standard deviation only.

    Args:
      x: float array of any shape.
      mask: bool, same shape; False entries of x may be anything.
      shift_mean: False adds the mean back.
      eps: added to the variance.
      axis_name: the mapped axis whose devices share mean and variance, or None.

    Returns:
      float32 array of x's shape, 0 where masked.

    >>> x, mask = jnp.array([1.0, 3.0, jnp.inf]), jnp.array([True, True, False])
    >>> [round(v, 3) for v in masked_whiten(x, mask).tolist()]
    [-1.0, 1.0, 0.0]
    """
    x = jnp.where(mask, x, 0.0).astype(jnp.float32)
    mean = masked_mean(x, mask, axis_name=axis_name)
    var = masked_mean(jnp.square(x - mean), mask, axis_name=axis_name)
    whitened = (x - mean) * jax.lax.rsqrt(var + eps)
    if not shift_mean:
        whitened = whitened + mean
    return jnp.where(mask, whitened, 0.0)


def last_token_mask(mask: Array) -> Array:
    """Marks the last True of each row. No reference.

    Args:
      mask: [B, T] bool; may have holes.

    Returns:
      [B, T] bool with one True a row, none where the row of mask has none.

    >>> last_token_mask(jnp.array([[True, False, True, False]])).tolist()
    [[False, False, True, False]]
    """
    chex.assert_rank(mask, 2)
    later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # how many from here to the end
    return mask & (later == 1)


def select_last(x: Array, mask: Array) -> Array:
    """The entry of x at the last True of each row of mask. No reference.

    Args:
      x: [B, T, ...] float.
      mask: [B, T] bool; may have holes.

    Returns:
      [B, ...]; 0 for a row without a True.

    >>> select_last(jnp.array([[1.0, 2.0, jnp.nan]]), jnp.array([[True, True, False]]))
    Array([2.], dtype=float32)
    """
    last = last_token_mask(mask)
    last = last.reshape(last.shape + (1,) * (x.ndim - 2))
    return jnp.sum(jnp.where(last, x, 0), axis=1)


def last_column(mask: Array) -> Array:
    """Where the last True of each row is. No reference.

    Args:
      mask: [..., T] bool; may have holes.

    Returns:
      [...] int32, 0 … T − 1 for a row without a True, too.

    >>> last_column(jnp.array([[True, False, True, False]])).tolist()
    [2]
    """
    chex.assert_type(mask, bool)
    return mask.shape[-1] - 1 - jnp.argmax(mask[..., ::-1], axis=-1)


def segment_masks(segment_ids: Array, segments: int) -> Array:
    """The tokens of each sequence of a row: mₛₜ = [t is in segment s]. No reference.

    Args:
      segment_ids: [B, T] int32, 0 = padding, which is in no mask.
      segments: S; sequences S + 1, … are in no mask either.

    Returns:
      [B, S, T] bool; entry s − 1 is segment s.

    >>> segment_masks(jnp.array([[1, 1, 2, 0]]), 2).astype(int).tolist()
    [[[1, 1, 0, 0], [0, 0, 1, 0]]]
    """
    return segment_ids[:, None] == jnp.arange(1, segments + 1)[None, :, None]


def segment_sum(x: Array, mask: Array, segment_ids: Array | None = None) -> Array:
    """Every token gets the sum over its own sequence: yₜ = Σᵤ mᵤxᵤ, u of t's sequence.

    No reference. What is said of a whole sequence (its log-prob, its length) stands at
    each of its tokens, so that packed rows need no other shape.

    Args:
      x: [B, T] float.
      mask: [B, T] bool; False entries of x may be anything.
      segment_ids: [B, T] int32, 0 … T, equal for the tokens of a sequence; None: a row
        is one sequence.

    Returns:
      [B, T] float32, 0 where masked.

    >>> x, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[True, True, True]])
    >>> segment_sum(x, mask, jnp.array([[1, 1, 2]])).tolist()
    [[3.0, 3.0, 4.0]]
    """
    chex.assert_rank(x, 2)
    chex.assert_equal_shape([x, mask])
    chex.assert_type(mask, bool)
    x = jnp.where(mask, x, 0.0).astype(jnp.float32)
    if segment_ids is None:
        return jnp.where(mask, jnp.sum(x, axis=1, keepdims=True), 0.0)
    chex.assert_equal_shape([x, segment_ids])
    in_row = partial(jax.ops.segment_sum, num_segments=x.shape[1] + 1)
    sums = jax.vmap(in_row)(x, segment_ids)
    return jnp.where(mask, jnp.take_along_axis(sums, segment_ids, axis=1), 0.0)


def segment_mean(x: Array, mask: Array, segment_ids: Array | None = None) -> Array:
    """Every token gets the mean over its own sequence, see ``segment_sum``.

    No reference.

    Args:
      x: [B, T] float.
      mask: [B, T] bool; False entries of x may be anything.
      segment_ids: [B, T] int32, 0 … T, equal for the tokens of a sequence; None: a row
        is one sequence.

    Returns:
      [B, T] float32, 0 where masked.

    >>> x, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[True, True, True]])
    >>> segment_mean(x, mask, jnp.array([[1, 1, 2]])).tolist()
    [[1.5, 1.5, 4.0]]
    """
    count = segment_sum(jnp.ones(x.shape, jnp.float32), mask, segment_ids)
    return segment_sum(x, mask, segment_ids) / jnp.maximum(count, 1.0)


def is_stop(
    tokens: Array, index: Array, stop_ids: tuple[int, ...], stop_after: int = 0
):
    """Whether a token emitted as number ``index`` of its response (from 0) ends it.

    Args:
      tokens: int32 array of any shape.
      index: int32, broadcastable to it.
      stop_ids: ids that end a response; empty: none does.
      stop_after: ids count from this index on (16 in Ziegler et al. 2019,
        arXiv:1909.08593).

    Returns:
      bool array of tokens' shape.

    >>> is_stop(jnp.array([5, 2, 2]), jnp.arange(3), (2,), stop_after=2).tolist()
    [False, False, True]
    """
    stops = jnp.asarray(stop_ids, jnp.int32).reshape((1,) * tokens.ndim + (-1,))
    return jnp.any(tokens[..., None] == stops, axis=-1) & (index >= stop_after)


def response_mask(
    tokens: Array, *, start: int, stop_ids: tuple[int, ...], stop_after: int = 0
) -> tuple[Array, Array]:
    """Which tokens belong to the response: from ``start`` to its stop token, inclusive.

    No reference. Three cases are told apart: no stop token (the whole budget, flagged
    as truncated), stop token first (a response of one token), stop token last.

    Args:
      tokens: [B, T] int32, responses begin at column ``start`` in every row.
      start: first column of the responses.
      stop_ids: ids that end a response.
      stop_after: they count from this index of the response on.

    Returns:
      mask: [B, T] bool.
      truncated: [B] bool, True where no stop token came.

    >>> tokens = jnp.array([[7, 2, 5, 5], [7, 5, 5, 5]])
    >>> mask, truncated = response_mask(tokens, start=1, stop_ids=(2,))
    >>> mask.astype(int).tolist(), truncated.tolist()
    ([[0, 1, 0, 0], [0, 1, 1, 1]], [False, True])
    """
    chex.assert_rank(tokens, 2)
    index = jnp.arange(tokens.shape[1]) - start
    stop = is_stop(tokens, index[None, :], stop_ids, stop_after) & (index >= 0)[None, :]
    stops_before = jnp.cumsum(stop, axis=1) - stop
    return (stops_before == 0) & (index >= 0)[None, :], ~jnp.any(stop, axis=1)
