"""How attention is computed: over rows, and over a cache.

Axes in names: B rows, T tokens of a row, Q those of a block, S columns that they see,
H query heads, K key-value heads, G = H / K query heads that share one, M = Q·G, d head
width.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.rows import from_blocks, gather, row_parts, to_blocks
from rlhf_jax.types import Array


def soft_cap(x: Array, cap: float | None) -> Array:
    """c·tanh(x/c), which is within ±c and nearly x where x is small; None: x itself.

    Gemma 2, arXiv:2408.00118.
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


MIXED = "attention"  # the name of its results, for `jax.checkpoint`
UNSEEN = float(jnp.finfo(jnp.float32).min)


def attend(
    q_BTHd: Array,
    k_BTKd: Array,
    v_BTKd: Array,
    masks_BQS: Sequence[Array],
    c: TransformerConfig,
) -> Array:
    """softmax(cap(s·q·k))·v over the tokens that the masks leave: [B, T, H, d].

    In the blocks of queries of `block_masks`. The backward pass computes the softmax
    again, from its normaliser, instead of keeping [T, T] weights: Dao et al. 2022,
    arXiv:2205.14135, without the tiling by hand. The softmax is float32. A padding
    token, which attends to nothing, gets an average and passes no gradient.

    Where a mesh cuts rows, each device has a share of every block's queries, and all
    keys and values: section 3.3.2 of Llama Team 2024, arXiv:2407.21783, with the load
    balanced as by Brandon et al. 2023, arXiv:2311.09431.
    """
    B, T, H, d = q_BTHd.shape
    if T == 0:  # prompts of one token, which decoding reads, leave nothing to prefill
        return q_BTHd
    scale = c.d_head**-0.5 if c.attn_scale is None else c.attn_scale
    q_BTKGd = (scale * q_BTHd).reshape(B, T, c.n_kv_heads, H // c.n_kv_heads, d)
    if row_parts(T) > 1:
        k_BTKd, v_BTKd = gather(k_BTKd), gather(v_BTKd)
    mix: Any = _mix
    mixed = mix(
        c.attn_softcap,
        tuple(map(_merge, to_blocks(q_BTKGd, [mask.shape[1] for mask in masks_BQS]))),
        jnp.swapaxes(k_BTKd, 1, 2),
        jnp.swapaxes(v_BTKd, 1, 2),
        tuple(masks_BQS),
    )
    tokens = (mask.shape[1] for mask in masks_BQS)
    blocks = tuple(map(_unmerge, mixed, tokens))
    return from_blocks(blocks).reshape(q_BTHd.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    cap: float | None,
    queries_BKMd: tuple[Array, ...],
    k_BKTd: Array,
    v_BKTd: Array,
    masks_BQS: tuple[Array, ...],
) -> tuple[Array, ...]:
    """softmax(cap(q·k))·v of each block, [B, K, M, d]."""
    return _mix_forward(cap, queries_BKMd, k_BKTd, v_BKTd, masks_BQS)[0]


def _mix_forward(
    cap: float | None,
    queries_BKMd: tuple[Array, ...],
    k_BKTd: Array,
    v_BKTd: Array,
    masks_BQS: tuple[Array, ...],
):
    mixed_BKMd, log_totals = [], []
    for q_BKMd, mask_BQS in zip(queries_BKMd, masks_BQS, strict=True):
        k_BKSd, v_BKSd = (x[:, :, : mask_BQS.shape[2]] for x in (k_BKTd, v_BKTd))
        scores_BKMS, seen_BKMS = _scores(q_BKMd, k_BKSd, mask_BQS)
        scores_BKMS = jnp.where(seen_BKMS, soft_cap(scores_BKMS, cap), UNSEEN)
        max_BKM1 = jnp.max(scores_BKMS, axis=-1, keepdims=True)
        weights_BKMS = jnp.exp(scores_BKMS - max_BKM1)
        total_BKM1 = jnp.sum(weights_BKMS, axis=-1, keepdims=True)
        block_BKMd = _product("BKMS,BKSd->BKMd", weights_BKMS, v_BKSd) / total_BKM1
        mixed_BKMd.append(block_BKMd.astype(q_BKMd.dtype))
        log_totals.append(max_BKM1 + jnp.log(total_BKM1))
    mixed = checkpoint_name((tuple(mixed_BKMd), tuple(log_totals)), MIXED)
    return mixed[0], (queries_BKMd, k_BKTd, v_BKTd, masks_BQS, *mixed)


def _mix_backward(cap: float | None, kept: tuple, by_mixed: tuple[Array, ...]):
    """∂/∂q = dS·k, ∂/∂k = dSᵀ·q, ∂/∂v = Pᵀ·dO, with dS = P ⊙ (dO·vᵀ − Σ dO ⊙ O).

    The products with a transposed [T, T] array are written as those of the narrow one,
    transposed: (qᵀ·dS)ᵀ.
    """
    queries, k_BKTd, v_BKTd, masks, mixed, log_totals = kept
    # A product, since a sum along a short last axis is slow on XLA's CPU backend.
    ones_d1 = jnp.ones((k_BKTd.shape[-1], 1), jnp.float32)
    by_q, by_k_BKPdT, by_v_BKPdT = [], 0.0, 0.0
    parts = row_parts(k_BKTd.shape[2])
    for q_BKMd, mask_BQS, mixed_BKMd, log_total_BKM1, by_mixed_BKMd in zip(
        queries, masks, mixed, log_totals, by_mixed, strict=True
    ):
        k_BKSd, v_BKSd = (x[:, :, : mask_BQS.shape[2]] for x in (k_BKTd, v_BKTd))
        raw_BKMS, seen_BKMS = _scores(q_BKMd, k_BKSd, mask_BQS)
        scores_BKMS = soft_cap(raw_BKMS, cap)
        weights_BKMS = jnp.where(seen_BKMS, jnp.exp(scores_BKMS - log_total_BKM1), 0.0)
        by_weights_BKMS = _product("BKMd,BKSd->BKMS", by_mixed_BKMd, v_BKSd)
        pull_BKM1 = (by_mixed_BKMd.astype(jnp.float32) * mixed_BKMd) @ ones_d1
        by_raw_BKMS = weights_BKMS * (by_weights_BKMS - pull_BKM1)
        if cap is not None:
            by_raw_BKMS = by_raw_BKMS * (1.0 - jnp.square(scores_BKMS / cap))
        by_q_BKMd = _product("BKMS,BKSd->BKMd", by_raw_BKMS, k_BKSd)
        by_q.append(by_q_BKMd.astype(q_BKMd.dtype))
        by_k_BKPdS = _summed_later(q_BKMd, by_raw_BKMS, parts)
        by_v_BKPdS = _summed_later(by_mixed_BKMd, weights_BKMS, parts)
        later = [(0, 0)] * 4 + [(0, k_BKTd.shape[2] - k_BKSd.shape[2])]
        by_k_BKPdT += jnp.pad(by_k_BKPdS, later)
        by_v_BKPdT += jnp.pad(by_v_BKPdS, later)
    return (
        tuple(by_q),
        jnp.swapaxes(jnp.sum(by_k_BKPdT, axis=2), 2, 3).astype(k_BKTd.dtype),
        jnp.swapaxes(jnp.sum(by_v_BKPdT, axis=2), 2, 3).astype(v_BKTd.dtype),
        None,
    )


_mix.defvjp(_mix_forward, _mix_backward)


def _summed_later(x_BKMd: Array, y_BKMS: Array, parts: int) -> Array:
    """xᵀ·y of each part of M, [B, K, P, d, S]: devices add up once, not by block."""
    if parts == 1:
        return _product("BKdM,BKMS->BKdS", jnp.swapaxes(x_BKMd, 2, 3), y_BKMS)[
            :, :, None
        ]
    x_BKPMd, y_BKPMS = (
        z.reshape(*z.shape[:2], parts, -1, z.shape[-1]) for z in (x_BKMd, y_BKMS)
    )
    return _product("BKPdM,BKPMS->BKPdS", jnp.swapaxes(x_BKPMd, 3, 4), y_BKPMS)


def _scores(q_BKMd: Array, k_BKSd: Array, mask_BQS: Array) -> tuple[Array, Array]:
    """(q·k, whether the mask leaves it)."""
    seen_BMS = jnp.repeat(mask_BQS, q_BKMd.shape[2] // mask_BQS.shape[1], axis=1)
    return _product("BKMd,BKSd->BKMS", q_BKMd, k_BKSd), seen_BMS[:, None]


def _merge(x_BQKGd: Array) -> Array:
    """[B, K, M, d], tokens before heads: so parts of the tokens are parts of M."""
    B, Q, K, G, d = x_BQKGd.shape
    return jnp.swapaxes(x_BQKGd, 1, 2).reshape(B, K, Q * G, d)


def _unmerge(x_BKMd: Array, tokens: int) -> Array:
    """[B, Q, K, G, d]."""
    B, K, M, d = x_BKMd.shape
    return jnp.swapaxes(x_BKMd.reshape(B, K, tokens, M // tokens, d), 1, 2)


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
