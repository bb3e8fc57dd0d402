"""Which tokens see which, and the one place that chooses how attention is computed.

Axes in names: B rows, T tokens of a row, S columns of the cache, H query heads, K
key-value heads, G = H / K query heads that share one, d head width.
"""

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.types import Array


@struct.dataclass
class View:
    """What a kind of layer sees: everything before a token, or a window of it."""

    cos_BTF: Array | None  # float32; None: positions are not rotary
    sin_BTF: Array | None
    mask_BTS: Array  # bool: which columns a token attends to
    column: Array | None  # [] int32: the cache's, of the first token; None: no cache is
    # read, S = T


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


def soft_cap(x: Array, cap: float | None) -> Array:
    """c·tanh(x/c), which is within ±c and nearly x where x is small; None: x itself.

    Gemma 2, arXiv:2408.00118.
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


LEAST_BLOCK, MOST_BLOCKS = 64, 8


def attend(
    q_BTHd: Array, k_BTKd: Array, v_BTKd: Array, mask_BTT: Array, c: TransformerConfig
) -> Array:
    """softmax(cap(s·q·k))·v over the tokens that the mask leaves: [B, T, H, d].

    In blocks of queries, each with the tokens up to its own last one: what no mask ever
    leaves, nearly half of [T, T], is not computed. The softmax is float32 and the mask
    a large finite number: a padding token, which attends to nothing, gets an average
    instead of NaN.
    """
    B, T, H, d = q_BTHd.shape
    if T == 0:  # prompts of one token, which decoding reads, leave nothing to prefill
        return q_BTHd
    q_BTKGd = q_BTHd.reshape(B, T, c.n_kv_heads, H // c.n_kv_heads, d)
    q_BKGTd = jnp.transpose(q_BTKGd, (0, 2, 3, 1, 4))
    k_BKTd, v_BKTd = jnp.swapaxes(k_BTKd, 1, 2), jnp.swapaxes(v_BTKd, 1, 2)
    width = max(LEAST_BLOCK, -(-T // MOST_BLOCKS))
    blocks = [
        _attend_block(
            q_BKGTd[:, :, :, start : start + width],
            k_BKTd[:, :, : start + width],
            v_BKTd[:, :, : start + width],
            mask_BTT[:, start : start + width, : start + width],
            c,
        )
        for start in range(0, T, width)
    ]
    mixed_BKGTd = jnp.concatenate(blocks, axis=3)
    return jnp.transpose(mixed_BKGTd, (0, 3, 1, 2, 4)).reshape(q_BTHd.shape)


def _attend_block(
    q_BKGQd: Array, k_BKSd: Array, v_BKSd: Array, mask_BQS: Array, c: TransformerConfig
) -> Array:
    scale = c.d_head**-0.5 if c.attn_scale is None else c.attn_scale
    scores_BKGQS = scale * jnp.einsum(
        "BKGQd,BKSd->BKGQS", q_BKGQd, k_BKSd, preferred_element_type=jnp.float32
    )
    scores_BKGQS = jnp.where(
        mask_BQS[:, None, None],
        soft_cap(scores_BKGQS, c.attn_softcap),
        jnp.finfo(jnp.float32).min,
    )
    weights_BKGQS = jax.nn.softmax(scores_BKGQS, axis=-1).astype(v_BKSd.dtype)
    return jnp.einsum("BKGQS,BKSd->BKGQd", weights_BKGQS, v_BKSd)


def attend_cached(
    q_BTHd: Array, cached: LayerCache, mask_BTS: Array, c: TransformerConfig
) -> Array:
    """`attend` over a cache: reads its keys once, then its values once.

    The queries of all heads that share keys are rows of one product, and the softmax is
    normalised after the second one, on [d] instead of [S] numbers.
    """
    B, T, H, d = q_BTHd.shape
    groups = (B, T, c.n_kv_heads, H // c.n_kv_heads, d)
    scale = c.d_head**-0.5 if c.attn_scale is None else c.attn_scale
    q_BKTGd = jnp.swapaxes(q_BTHd.reshape(groups), 1, 2)
    q_BKQd = q_BKTGd.reshape(B, c.n_kv_heads, -1, d)
    scores_BKQS = scale * jnp.einsum(
        "BKQd,BKdS->BKQS",
        q_BKQd,
        cached.keys.astype(c.dtype),
        preferred_element_type=jnp.float32,
    )
    if cached.key_scales is not None:
        scores_BKQS = scores_BKQS * cached.key_scales[:, :, None]
    allowed_BQS = jnp.repeat(mask_BTS, H // c.n_kv_heads, axis=1)[:, None]
    scores_BKQS = jnp.where(
        allowed_BQS, soft_cap(scores_BKQS, c.attn_softcap), jnp.finfo(jnp.float32).min
    )
    weights_BKQS = jnp.exp(scores_BKQS - jnp.max(scores_BKQS, axis=-1, keepdims=True))
    total_BKQ1 = jnp.sum(weights_BKQS, axis=-1, keepdims=True)
    if cached.value_scales is not None:
        weights_BKQS = weights_BKQS * cached.value_scales[:, :, None]
    mixed_BKQd = jnp.einsum(
        "BKQS,BKSd->BKQd",
        weights_BKQS.astype(c.dtype),
        cached.values.astype(c.dtype),
        preferred_element_type=jnp.float32,
    )
    mixed_BKQd = (mixed_BKQd / total_BKQ1).astype(c.dtype)
    mixed_BKTGd = mixed_BKQd.reshape(B, c.n_kv_heads, T, H // c.n_kv_heads, d)
    return jnp.swapaxes(mixed_BKTGd, 1, 2).reshape(q_BTHd.shape)
