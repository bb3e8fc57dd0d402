"""Which tokens see which, and the one place that chooses how attention is computed.

Axes in names: B rows, T tokens of a row, S columns of the cache, H query heads, K
key-value heads, G = H / K query heads that share one, d head width.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

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
MIXED = "attention"  # the name of its results, for `jax.checkpoint`
UNSEEN = float(jnp.finfo(jnp.float32).min)


def attend(
    q_BTHd: Array, k_BTKd: Array, v_BTKd: Array, mask_BTT: Array, c: TransformerConfig
) -> Array:
    """softmax(cap(s·q·k))·v over the tokens that the mask leaves: [B, T, H, d].

    In blocks of queries, each with the tokens up to its own last one: what no mask ever
    leaves, nearly half of [T, T], is not computed. The backward pass computes the
    softmax again, from its normaliser, instead of keeping [T, T] weights: Dao et al.
    2022, arXiv:2205.14135, without the tiling by hand. The softmax is float32. A
    padding token, which attends to nothing, gets an average and passes no gradient.
    """
    B, T, H, d = q_BTHd.shape
    if T == 0:  # prompts of one token, which decoding reads, leave nothing to prefill
        return q_BTHd
    scale = c.d_head**-0.5 if c.attn_scale is None else c.attn_scale
    q_BTKGd = (scale * q_BTHd).reshape(B, T, c.n_kv_heads, H // c.n_kv_heads, d)
    mix: Any = _mix
    mixed_BKGTd = mix(
        c.attn_softcap,
        jnp.transpose(q_BTKGd, (0, 2, 3, 1, 4)),
        jnp.swapaxes(k_BTKd, 1, 2),
        jnp.swapaxes(v_BTKd, 1, 2),
        mask_BTT,
    )
    return jnp.transpose(mixed_BKGTd, (0, 3, 1, 2, 4)).reshape(q_BTHd.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    cap: float | None, q_BKGTd: Array, k_BKTd: Array, v_BKTd: Array, mask_BTT: Array
) -> Array:
    """softmax(cap(q·k))·v, [B, K, G, T, d]."""
    return _mix_forward(cap, q_BKGTd, k_BKTd, v_BKTd, mask_BTT)[0]


def _mix_forward(
    cap: float | None, q_BKGTd: Array, k_BKTd: Array, v_BKTd: Array, mask_BTT: Array
):
    mixed, log_totals = [], []
    for queries, keys in _blocks(q_BKGTd.shape[3]):
        v_BKSd = v_BKTd[:, :, keys]
        scores_BKMS, seen_BKMS = _scores(
            q_BKGTd[:, :, :, queries], k_BKTd[:, :, keys], mask_BTT[:, queries, keys]
        )
        scores_BKMS = jnp.where(seen_BKMS, soft_cap(scores_BKMS, cap), UNSEEN)
        max_BKM1 = jnp.max(scores_BKMS, axis=-1, keepdims=True)
        weights_BKMS = jnp.exp(scores_BKMS - max_BKM1)
        total_BKM1 = jnp.sum(weights_BKMS, axis=-1, keepdims=True)
        mixed_BKMd = _product("BKMS,BKSd->BKMd", weights_BKMS, v_BKSd) / total_BKM1
        mixed.append(_unmerge(mixed_BKMd.astype(q_BKGTd.dtype), q_BKGTd))
        log_totals.append(max_BKM1 + jnp.log(total_BKM1))
    mixed_BKGTd = jnp.concatenate(mixed, axis=3)
    mixed_BKGTd, log_totals = checkpoint_name((mixed_BKGTd, log_totals), MIXED)
    return mixed_BKGTd, (q_BKGTd, k_BKTd, v_BKTd, mask_BTT, mixed_BKGTd, log_totals)


def _mix_backward(cap: float | None, kept: tuple, by_mixed_BKGTd: Array):
    """∂/∂q = dS·k, ∂/∂k = dSᵀ·q, ∂/∂v = Pᵀ·dO, with dS = P ⊙ (dO·vᵀ − Σ dO ⊙ O).

    The products with a transposed [T, T] array are written as those of the narrow one,
    transposed: (qᵀ·dS)ᵀ.
    """
    q_BKGTd, k_BKTd, v_BKTd, mask_BTT, mixed_BKGTd, log_totals = kept
    # A product, since a sum along a short last axis is slow on XLA's CPU backend.
    ones_d1 = jnp.ones((mixed_BKGTd.shape[-1], 1), jnp.float32)
    pull_BKGT1 = (by_mixed_BKGTd.astype(jnp.float32) * mixed_BKGTd) @ ones_d1
    by_q, by_k_BKdT, by_v_BKdT = [], 0.0, 0.0
    for (queries, keys), log_total_BKM1 in zip(
        _blocks(q_BKGTd.shape[3]), log_totals, strict=True
    ):
        q_BKGQd, k_BKSd = q_BKGTd[:, :, :, queries], k_BKTd[:, :, keys]
        raw_BKMS, seen_BKMS = _scores(q_BKGQd, k_BKSd, mask_BTT[:, queries, keys])
        scores_BKMS = soft_cap(raw_BKMS, cap)
        weights_BKMS = jnp.where(seen_BKMS, jnp.exp(scores_BKMS - log_total_BKM1), 0.0)
        by_mixed_BKMd = _merge(by_mixed_BKGTd[:, :, :, queries])
        by_weights_BKMS = _product("BKMd,BKSd->BKMS", by_mixed_BKMd, v_BKTd[:, :, keys])
        pull_BKM1 = _merge(pull_BKGT1[:, :, :, queries])
        by_raw_BKMS = weights_BKMS * (by_weights_BKMS - pull_BKM1)
        if cap is not None:
            by_raw_BKMS = by_raw_BKMS * (1.0 - jnp.square(scores_BKMS / cap))
        by_q_BKMd = _product("BKMS,BKSd->BKMd", by_raw_BKMS, k_BKSd)
        by_q.append(_unmerge(by_q_BKMd, q_BKGQd))
        later = ((0, 0), (0, 0), (0, 0), (0, k_BKTd.shape[2] - keys.stop))
        q_BKdM, by_mixed_BKdM = (
            jnp.swapaxes(x, 2, 3) for x in (_merge(q_BKGQd), by_mixed_BKMd)
        )
        by_k_BKdS = _product("BKdM,BKMS->BKdS", q_BKdM, by_raw_BKMS)
        by_v_BKdS = _product("BKdM,BKMS->BKdS", by_mixed_BKdM, weights_BKMS)
        by_k_BKdT += jnp.pad(by_k_BKdS, later)
        by_v_BKdT += jnp.pad(by_v_BKdS, later)
    return (
        jnp.concatenate(by_q, axis=3).astype(q_BKGTd.dtype),
        jnp.swapaxes(by_k_BKdT, 2, 3).astype(k_BKTd.dtype),
        jnp.swapaxes(by_v_BKdT, 2, 3).astype(v_BKTd.dtype),
        None,
    )


_mix.defvjp(_mix_forward, _mix_backward)


def _blocks(tokens: int) -> list[tuple[slice, slice]]:
    """(queries, keys) of each block: the keys up to its last query."""
    width = max(LEAST_BLOCK, -(-tokens // MOST_BLOCKS))
    starts = range(0, tokens, width)
    ends = [min(start + width, tokens) for start in starts]
    return [
        (slice(*block), slice(0, block[1])) for block in zip(starts, ends, strict=True)
    ]


def _scores(q_BKGQd: Array, k_BKSd: Array, mask_BQS: Array) -> tuple[Array, Array]:
    """(q·k, whether the mask leaves it), the queries of a group's heads as rows M."""
    seen_BKMS = jnp.tile(mask_BQS, (1, q_BKGQd.shape[2], 1))[:, None]
    return _product("BKMd,BKSd->BKMS", _merge(q_BKGQd), k_BKSd), seen_BKMS


def _merge(x_BKGQd: Array) -> Array:
    return x_BKGQd.reshape(*x_BKGQd.shape[:2], -1, x_BKGQd.shape[-1])


def _unmerge(x_BKMd: Array, like_BKGQd: Array) -> Array:
    return x_BKMd.reshape(*like_BKGQd.shape[:3], -1, x_BKMd.shape[-1])


def _product(equation: str, x: Array, y: Array) -> Array:
    """In float32, of operands in the narrower of the two dtypes."""
    dtype = min(x.dtype, y.dtype, key=lambda d: d.itemsize)
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def attend_cached(
    q_BTHd: Array, cached: LayerCache, mask_BTS: Array, c: TransformerConfig
) -> Array:
    """`attend` over a cache: reads its keys once, then its values once.

    The queries of all heads that share keys are rows of one product, and the softmax is
    normalised after the second one, on [d] instead of [S] numbers. A prefix that groups
    of rows share is read once a group: Juravsky et al. 2024, arXiv:2402.05099.
    """
    B, T, H, d = q_BTHd.shape
    groups = (B, T, c.n_kv_heads, H // c.n_kv_heads, d)
    scale = c.d_head**-0.5 if c.attn_scale is None else c.attn_scale
    q_BKTGd = jnp.swapaxes(q_BTHd.reshape(groups), 1, 2)
    q_BKQd = q_BKTGd.reshape(B, c.n_kv_heads, -1, d)
    parts = [cached] if cached.prefix is None else [cached.prefix, cached]
    scores = [_cached_scores(q_BKQd, part, c) for part in parts]
    scores_BKQS = scale * jnp.concatenate(scores, axis=-1)
    allowed_BQS = jnp.repeat(mask_BTS, H // c.n_kv_heads, axis=1)[:, None]
    scores_BKQS = jnp.where(allowed_BQS, soft_cap(scores_BKQS, c.attn_softcap), UNSEEN)
    weights_BKQS = jnp.exp(scores_BKQS - jnp.max(scores_BKQS, axis=-1, keepdims=True))
    total_BKQ1 = jnp.sum(weights_BKQS, axis=-1, keepdims=True)
    ends = list(itertools.accumulate(part.values.shape[2] for part in parts))
    weights = jnp.split(weights_BKQS, ends[:-1], axis=-1)
    mixed_BKQd = sum(map(functools.partial(_cached_sum, c=c), weights, parts))
    mixed_BKQd = (mixed_BKQd / total_BKQ1).astype(c.dtype)
    mixed_BKTGd = mixed_BKQd.reshape(B, c.n_kv_heads, T, H // c.n_kv_heads, d)
    return jnp.swapaxes(mixed_BKTGd, 1, 2).reshape(q_BTHd.shape)


def _cached_scores(q_BKQd: Array, part: LayerCache, c: TransformerConfig) -> Array:
    """q·k, [B, K, Q, S] float32; rows that share a part are rows of one product."""
    scores_RKMS = jnp.einsum(
        "RKMd,RKdS->RKMS",
        _side_by_side(q_BKQd, part.keys.shape[0]),
        part.keys.astype(c.dtype),
        preferred_element_type=jnp.float32,
    )
    if part.key_scales is not None:
        scores_RKMS = scores_RKMS * part.key_scales[:, :, None]
    return _apart(scores_RKMS, q_BKQd.shape[0])


def _cached_sum(weights_BKQS: Array, part: LayerCache, c: TransformerConfig) -> Array:
    """Σ weight · v, [B, K, Q, d] float32."""
    weights_RKMS = _side_by_side(weights_BKQS, part.values.shape[0])
    if part.value_scales is not None:
        weights_RKMS = weights_RKMS * part.value_scales[:, :, None]
    mixed_RKMd = jnp.einsum(
        "RKMS,RKSd->RKMd",
        weights_RKMS.astype(c.dtype),
        part.values.astype(c.dtype),
        preferred_element_type=jnp.float32,
    )
    return _apart(mixed_RKMd, weights_BKQS.shape[0])


def _side_by_side(x_BKQn: Array, groups: int) -> Array:
    """[B, K, Q, n] → [R, K, B/R · Q, n]: the rows of each of R groups in one."""
    if x_BKQn.shape[0] == groups:
        return x_BKQn
    B, K, Q, n = x_BKQn.shape
    x_RCKQn = x_BKQn.reshape(groups, -1, K, Q, n)
    return jnp.swapaxes(x_RCKQn, 1, 2).reshape(groups, K, -1, n)


def _apart(x_RKMn: Array, rows: int) -> Array:
    """`_side_by_side` the other way round."""
    if x_RKMn.shape[0] == rows:
        return x_RKMn
    R, K, _, n = x_RKMn.shape
    x_RKCQn = x_RKMn.reshape(R, K, rows // R, -1, n)
    return jnp.swapaxes(x_RKCQn, 1, 2).reshape(rows, K, -1, n)
