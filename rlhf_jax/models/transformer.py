"""The decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP.

Axes in names: B rows, T tokens of a row, N = B·T tokens of the batch, S slots of the
cache, L layers, D model width, H query heads, K key-value heads, d head width.

Weights are [in, out], stacked over the layers, and start as

* N(0, 1/in) inside the layers, with a further 1/√(2L) on the two projections that add
  to the residual stream, so that its variance does not grow with depth
  (Radford et al. 2019);
* N(0, 0.02²) for the embedding and the output projection, so that the first
  distribution over tokens is nearly uniform.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.types import Array, TokenBatch

EMBEDDING_STD = 0.02


@struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far. A slot of segment 0 is unused."""

    keys: Array  # [L, B, S, K, d]
    values: Array  # [L, B, S, K, d]
    segment_ids: Array  # [B, S] int32
    index: Array  # [] int32: the next slot to be written

    @classmethod
    def empty(cls, config: TransformerConfig, batch_size: int, slots: int) -> "KVCache":
        """A cache without a token in it."""
        c = config
        shape = (c.n_layers, batch_size, slots, c.n_kv_heads, c.d_head)
        return cls(
            keys=jnp.zeros(shape, c.dtype),
            values=jnp.zeros(shape, c.dtype),
            segment_ids=jnp.zeros((batch_size, slots), jnp.int32),
            index=jnp.zeros((), jnp.int32),
        )


@struct.dataclass
class _Shared:
    """What is the same for every layer."""

    cos_BTd: Array  # float32; d / 2 wide
    sin_BTd: Array
    mask_BTS: Array  # bool: which slots a token attends to
    index: Array  # [] int32: slot of the batch's first token


_Stored = tuple[Array, Array] | None  # keys and values of all layers; None: no cache


def _write(
    stored_LBSKd: Array, new_BTKd: Array, *, layer: Array, index: Array
) -> Array:
    """Puts new keys or values of one layer into the slots from ``index`` on."""
    at = (layer, 0, index, 0, 0)
    return jax.lax.dynamic_update_slice(stored_LBSKd, new_BTKd[None], at)


def rotary(positions: Array, d_head: int, theta: float) -> tuple[Array, Array]:
    """Angles of rotary positions: cos and sin of t·θ^(−2i/d).

    Su et al. 2021, arXiv:2104.09864.

    Args:
      positions: [B, T] int32.
      d_head: width d of a head.
      theta: the base θ.

    Returns:
      cos and sin, both [B, T, d/2] float32.

    >>> cos, sin = rotary(jnp.array([[0, 1]]), 2, 10_000.0)
    >>> [round(v, 3) for v in (*cos.ravel().tolist(), *sin.ravel().tolist())]
    [1.0, 0.54, 0.0, 0.841]
    """
    frequencies = theta ** (-jnp.arange(0, d_head, 2, dtype=jnp.float32) / d_head)
    angles = positions[:, :, None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHd: Array, cos_BTd: Array, sin_BTd: Array) -> Array:
    """Turns the pairs (xᵢ, xᵢ₊d/2) by their angles: the half-split order of Llama.

    Su et al. 2021, arXiv:2104.09864, eq. 34, with the pairs d/2 apart instead of
    adjacent.

    Args:
      x_BTHd: [B, T, H, d] queries or keys.
      cos_BTd: [B, T, d/2] float32; as sin_BTd.
      sin_BTd: [B, T, d/2] float32.

    Returns:
      [B, T, H, d] of x's dtype.

    >>> quarter = jnp.ones((1, 1, 1))  # sin of a right angle
    >>> rotate(jnp.array([[[[3.0, 4.0]]]]), 0 * quarter, quarter).ravel().tolist()
    [-4.0, 3.0]
    """
    first, second = jnp.split(x_BTHd.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTd[:, :, None, :], sin_BTd[:, :, None, :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BTHd.dtype)


def attention_mask(query_segments: Array, key_segments: Array, index: Array) -> Array:
    """Which slots a token attends to: its own segment, itself and before, no padding.

    No reference. The order is that of the slots, not of the positions.

    Args:
      query_segments: [B, T] int32 segments of the batch's tokens.
      key_segments: [B, S] int32 segments of the slots, those tokens among them.
      index: [] int32, slot of the first token.

    Returns:
      [B, T, S] bool.

    >>> segments = jnp.array([[0, 1, 1, 2]])
    >>> attention_mask(segments, segments, jnp.array(0))[0].astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    """
    query_slots = index + jnp.arange(query_segments.shape[1])
    key_slots = jnp.arange(key_segments.shape[1])
    causal_TS = key_slots[None, :] <= query_slots[:, None]
    same_BTS = query_segments[:, :, None] == key_segments[:, None, :]
    return same_BTS & (query_segments > 0)[:, :, None] & causal_TS[None]


def _dense(features: int, config: TransformerConfig, scale: float = 1.0) -> nn.Dense:
    """A projection without bias; ``scale`` multiplies the initial variance 1/in."""
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.initializers.variance_scaling(scale, "fan_in", "normal"),
    )


def _norm(config: TransformerConfig) -> nn.RMSNorm:
    """RMSNorm, its statistics in float32 whatever the dtype."""
    c = config
    return nn.RMSNorm(epsilon=c.norm_eps, dtype=c.dtype, param_dtype=c.param_dtype)


class Attention(nn.Module):
    """Causal attention whose key and value heads serve groups of query heads.

    Ainslie et al. 2023, arXiv:2305.13245.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.q_proj = _dense(c.n_heads * c.d_head, c)
        self.k_proj = _dense(c.n_kv_heads * c.d_head, c)
        self.v_proj = _dense(c.n_kv_heads * c.d_head, c)
        self.o_proj = _dense(c.d_model, c, scale=1 / (2 * c.n_layers))

    def __call__(
        self, x_ND: Array, stored: _Stored, layer: Array, shared: _Shared
    ) -> tuple[Array, _Stored]:
        c = self.config
        rows = shared.cos_BTd.shape[:2]
        q_BTHd = self.q_proj(x_ND).reshape(*rows, c.n_heads, c.d_head)
        k_BTKd = self.k_proj(x_ND).reshape(*rows, c.n_kv_heads, c.d_head)
        v_BTKd = self.v_proj(x_ND).reshape(*rows, c.n_kv_heads, c.d_head)
        q_BTHd = rotate(q_BTHd, shared.cos_BTd, shared.sin_BTd)
        k_BTKd = rotate(k_BTKd, shared.cos_BTd, shared.sin_BTd)
        k_BSKd, v_BSKd = k_BTKd, v_BTKd
        if stored is not None:
            # Reading what was just written orders the layers' reads and writes, so that
            # a decode loop updates the cache in place, unrolled layers included.
            write = partial(_write, layer=layer, index=shared.index)
            stored = (write(stored[0], k_BTKd), write(stored[1], v_BTKd))
            k_BSKd, v_BSKd = stored[0][layer], stored[1][layer]
        # The softmax is float32 and the mask a large finite number: a padding token,
        # which attends to nothing, gets an average instead of NaN.
        mixed_BTHd = jax.nn.dot_product_attention(
            q_BTHd, k_BSKd, v_BSKd, mask=shared.mask_BTS[:, None]
        )
        return self.o_proj(mixed_BTHd.reshape(-1, c.n_heads * c.d_head)), stored


class MLP(nn.Module):
    """down(silu(gate(x)) ⊙ up(x)). Shazeer 2020, arXiv:2002.05202."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.gate_proj = _dense(c.d_ff, c)
        self.up_proj = _dense(c.d_ff, c)
        self.down_proj = _dense(c.d_model, c, scale=1 / (2 * c.n_layers))

    def __call__(self, x_ND: Array) -> Array:
        return self.down_proj(nn.silu(self.gate_proj(x_ND)) * self.up_proj(x_ND))


class Block(nn.Module):
    """One layer: attention and MLP, each normalised before and added after."""

    config: TransformerConfig

    def setup(self):
        self.attn_norm = _norm(self.config)
        self.attn = Attention(self.config)
        self.mlp_norm = _norm(self.config)
        self.mlp = MLP(self.config)

    def __call__(
        self, carry: tuple[Array, _Stored], layer: Array, shared: _Shared
    ) -> tuple[tuple[Array, _Stored], None]:
        x_ND, stored = carry
        mixed_ND, stored = self.attn(self.attn_norm(x_ND), stored, layer, shared)
        x_ND = x_ND + mixed_ND
        return (x_ND + self.mlp(self.mlp_norm(x_ND)), stored), None


class Transformer(nn.Module):
    """The trunk: tokens -> hidden states, without a head.

    Touvron et al. 2023, arXiv:2302.13971. What stands under padding, ids outside the
    vocabulary included, changes nothing at real tokens; at padding the hidden states
    are finite and mean nothing.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.embed = nn.Embed(
            c.vocab_size,
            c.d_model,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=nn.initializers.normal(EMBEDDING_STD),
        )
        # Inside a scan XLA cannot merge the recomputation with the first pass anyway.
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        axes: Any = (0, nn.broadcast)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=axes,
            length=c.n_layers,
            unroll=c.scan_unroll,
        )(c)
        self.final_norm = _norm(c)

    def __call__(
        self,
        batch: TokenBatch,
        *,
        cache: KVCache | None = None,
        cache_size: int | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Hidden states [B, T, D], and the cache that holds the batch, if asked for.

        Args:
          batch: the mask is not looked at.
          cache: what the batch follows; its T slots from ``cache.index`` on must exist.
          cache_size: slots of a new cache that begins with the batch.

        Raises:
          UserError: both given, or more slots than there are.
        """
        cache = self._open_cache(batch.tokens.shape, cache, cache_size)
        real = batch.segment_ids > 0
        positions = jnp.where(real, batch.positions, 0)
        cos, sin = rotary(positions, self.config.d_head, self.config.rope_theta)
        index, segments_BS = jnp.zeros((), jnp.int32), batch.segment_ids
        if cache is not None:
            index = cache.index
            segments_BS = jax.lax.dynamic_update_slice_in_dim(
                cache.segment_ids, batch.segment_ids, index, axis=1
            )
        mask_BTS = attention_mask(batch.segment_ids, segments_BS, index)
        shared = _Shared(cos, sin, mask_BTS, index)
        stored = None if cache is None else (cache.keys, cache.values)
        # Tokens in one row from here on: XLA's CPU backward pass of a matrix product is
        # up to three times slower with two leading axes, and no faster anywhere.
        x_ND = self.embed(jnp.where(real, batch.tokens, 0).reshape(-1))
        layers = jnp.arange(self.config.n_layers)
        (x_ND, stored), _ = self.blocks((x_ND, stored), layers, shared)
        if stored is not None:
            index = index + batch.tokens.shape[1]
            cache = KVCache(*stored, segment_ids=segments_BS, index=index)
        hidden_ND = self.final_norm(x_ND)
        return hidden_ND.reshape(*batch.tokens.shape, self.config.d_model), cache

    def _open_cache(
        self, shape: tuple[int, ...], cache: KVCache | None, cache_size: int | None
    ) -> KVCache | None:
        """The cache to read and write, or None; checks that the batch fits."""
        batch_size, length = shape
        if cache is not None and cache_size is not None:
            raise UserError("cache and cache_size are both given: give one of them")
        slots = length if cache_size is None else cache_size
        if cache is not None:
            slots = cache.keys.shape[2]
        if length > slots:
            raise UserError(
                f"{length} tokens do not fit the cache of {slots} slots: enlarge it"
            )
        if slots > self.config.max_length:
            raise UserError(
                f"rows of {slots} slots exceed max_length={self.config.max_length}: "
                "shorten prompts or max_new_tokens, or raise it"
            )
        if cache_size is None:
            return cache
        return KVCache.empty(self.config, batch_size, cache_size)
