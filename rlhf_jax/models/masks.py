"""Which tokens see which.

Axes in names: B rows, T tokens of a row, N = B·T, Q tokens of a block, S columns that
they see or that are asked for, M = B·S, D model width, F rotated pairs of a head.
"""

import jax.numpy as jnp
from flax import struct

from rlhf_jax.rows import join_rows, row_parts, split_rows, take_columns, to_blocks
from rlhf_jax.types import Array

LEAST_BLOCK, MOST_BLOCK, BLOCKS = 64, 1_024, 8  # tokens; how many between the two


@struct.dataclass
class View:
    """What a kind of layer sees: everything before a token, or a window of it."""

    cos_BTF: Array | None  # float32; None: positions are not rotary
    sin_BTF: Array | None
    masks_BQS: tuple[Array, ...]  # bool: which columns the tokens of a block attend to
    column: Array | None  # [] int32: the cache's, of the first token; None: no cache is
    # read
    at_BS: Array | None = None  # int32: columns of the tokens that ask; None: all do

    def asking(self, x_ND: Array) -> Array:
        """Of those tokens, [M, D]."""
        if self.at_BS is None:
            return x_ND
        x_BTD = split_rows(x_ND, self.at_BS.shape[0])
        return join_rows(take_columns(x_BTD, self.at_BS))


def attention_mask(
    query_segments: Array,
    key_segments: Array,
    index: Array,
    window: int | None = None,
) -> Array:
    """Which columns a token attends to: its segment's, itself and before, no padding.

    Column c was written (index + t − c) mod S columns before token t. No reference;
    windows are section 3.1 of Beltagy et al. 2020, arXiv:2004.05150. The order is that
    of the columns, not of the positions.

    Args:
      query_segments: [B, T] int32 segments of the batch's tokens.
      key_segments: [B, S] int32 segments of the columns, those tokens among them.
      index: [] int32, column of the first token, before it is taken mod S.
      window: how many columns a token sees, its own included; None for all.

    Returns:
      [B, T, S] bool.

    >>> segments = jnp.array([[0, 1, 1, 2]])
    >>> attention_mask(segments, segments, jnp.array(0))[0].astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    """
    tokens, columns = query_segments.shape[1], key_segments.shape[1]
    offsets = jnp.arange(tokens)
    age_TS = jnp.mod(index + offsets[:, None] - jnp.arange(columns)[None], columns)
    # Of the columns written with this batch, those after the token look oldest.
    seen_TS = age_TS <= (columns - tokens + offsets)[:, None]
    if window is not None:
        seen_TS &= age_TS < window
    same_BTS = query_segments[:, :, None] == key_segments[:, None, :]
    return same_BTS & (query_segments > 0)[:, :, None] & seen_TS[None]


def block_masks(segment_ids: Array, window: int | None = None) -> tuple[Array, ...]:
    """`attention_mask` of rows among themselves, in blocks of tokens for `attend`.

    No reference. A block's tokens have columns up to the last of them: what no mask
    ever leaves, nearly half of [T, T], is not there. Where a mesh cuts rows, it cuts
    every block.

    Args:
      segment_ids: [B, T] int32.
      window: as in `attention_mask`.

    Returns:
      For each block [B, Q, S] bool, S tokens in it and before.

    >>> [mask.shape for mask in block_masks(jnp.ones((2, 100), jnp.int32))]
    [(2, 64, 64), (2, 36, 100)]
    """
    masks, widths = [], _widths(segment_ids.shape[1])
    for queries in to_blocks(segment_ids, widths):
        start = sum(mask.shape[1] for mask in masks)
        columns = segment_ids[:, : start + queries.shape[1]]
        masks.append(attention_mask(queries, columns, jnp.int32(start), window))
    return tuple(masks)


def column_mask(segment_ids: Array, at: Array, window: int | None = None) -> Array:
    """The rows of `attention_mask` of rows among themselves at a few columns.

    No reference.

    Args:
      segment_ids: [B, T] int32.
      at: [B, S] int32 columns.
      window: as in `attention_mask`.

    Returns:
      [B, S, T] bool.

    >>> segments = jnp.array([[0, 1, 1, 2]])
    >>> column_mask(segments, jnp.array([[2, 3]]))[0].astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 1]]
    """
    age_BST = at[:, :, None] - jnp.arange(segment_ids.shape[1])[None, None]
    seen_BST = age_BST >= 0
    if window is not None:
        seen_BST &= age_BST < window
    own_BS1 = take_columns(segment_ids, at)[:, :, None]
    return seen_BST & (own_BS1 == segment_ids[:, None]) & (own_BS1 > 0)


def _widths(tokens: int) -> list[int]:
    """How many tokens each block has."""
    count, parts = max(BLOCKS, tokens // MOST_BLOCK), row_parts(tokens)
    if parts > 1:  # equal ones, as many in each part of a row
        count = -(-count // parts) * parts
        return [tokens] if tokens % (count * parts) else [tokens // count] * count
    width = max(LEAST_BLOCK, -(-tokens // count))
    return [min(width, tokens - start) for start in range(0, tokens or 1, width)]
