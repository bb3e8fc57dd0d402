"""The decoder: layers stacked and scanned over, with an explicit cache.

Axes in names: B rows, T tokens of a row, N = B·T tokens of the batch, S slots of the
cache, L layers, D model width, H query heads, K key-value heads, d head width.

Weights are [in, out], stacked over the layers, and start as

* N(0, 1/in) inside the layers, with a further 1/√(2L) on the two projections that add
  to the residual stream, so that its variance does not grow with depth
  (Radford et al. 2019);
* N(0, 0.02²) for the embedding and the output projection, so that the first
  distribution over tokens is nearly uniform.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import RopeConfig, TransformerConfig
from rlhf_jax.models.layers import (
    MLP,
    Attention,
    MixtureOfExperts,
    Stored,
    View,
    make_norm,
)
from rlhf_jax.models.rope import rotary
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
    """What is the same for every layer, or for every layer of a kind."""

    index: Array  # [] int32: slot of the batch's first token
    views: tuple[View, ...]  # one for all layers; or the global and the local ones'


def attention_mask(
    query_segments: Array,
    key_segments: Array,
    index: Array,
    window: int | None = None,
) -> Array:
    """Which slots a token attends to: its own segment, itself and before, no padding.

    No reference; windows are section 3.1 of Beltagy et al. 2020, arXiv:2004.05150. The
    order is that of the slots, not of the positions.

    Args:
      query_segments: [B, T] int32 segments of the batch's tokens.
      key_segments: [B, S] int32 segments of the slots, those tokens among them.
      index: [] int32, slot of the first token.
      window: how many slots a token sees, its own included; None for all.

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
    if window is not None:
        causal_TS &= key_slots[None, :] > query_slots[:, None] - window
    return same_BTS & (query_segments > 0)[:, :, None] & causal_TS[None]


def sequence_lengths(segment_ids: Array, positions: Array) -> Array:
    """How many tokens the sequence of each token has in the batch. No reference.

    >>> segments = jnp.array([[1, 1, 2, 0]])
    >>> sequence_lengths(segments, jnp.array([[0, 1, 0, 0]])).tolist()
    [[2, 2, 1, 1]]
    """
    same_BTT = segment_ids[:, :, None] == segment_ids[:, None, :]
    return 1 + jnp.max(jnp.where(same_BTT, positions[:, None, :], 0), axis=-1)


class Block(nn.Module):
    """One layer: attention and MLP, normalised before, after, or both; then added."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.attn = Attention(c)
        self.mlp = MixtureOfExperts(c) if c.n_experts else MLP(c)
        if c.pre_norm:
            self.attn_norm, self.mlp_norm = make_norm(c), make_norm(c)
        if c.post_norm:
            self.attn_post_norm, self.mlp_post_norm = make_norm(c), make_norm(c)

    def __call__(
        self, carry: tuple[Array, Stored], layer: Array, shared: _Shared
    ) -> tuple[tuple[Array, Stored], None]:
        c = self.config
        x_ND, stored = carry
        read_ND = self.attn_norm(x_ND) if c.pre_norm else x_ND
        view = self._view(shared, layer)
        added_ND, stored = self.attn(read_ND, stored, layer, shared.index, view)
        if c.post_norm:
            added_ND = self.attn_post_norm(added_ND)
        sum_ND = x_ND + added_ND
        read_ND = x_ND if c.parallel_residual else sum_ND
        added_ND = self.mlp(self.mlp_norm(read_ND) if c.pre_norm else read_ND)
        if c.post_norm:
            added_ND = self.mlp_post_norm(added_ND)
        return (sum_ND + added_ND, stored), None

    def _view(self, shared: _Shared, layer: Array) -> View:
        """What this layer sees: layers of both kinds are one compiled loop."""
        if len(shared.views) == 1:
            return shared.views[0]
        local = jnp.isin(layer, jnp.array(self.config.local_layers))
        return jax.tree.map(
            lambda far, near: jnp.where(local, near, far), *shared.views
        )


class Transformer(nn.Module):
    """The trunk: tokens -> hidden states, without a head.

    Touvron et al. 2023, arXiv:2302.13971, and the families of `models.hf`. What stands
    under padding, ids outside the vocabulary included, changes nothing at real tokens;
    at padding the hidden states are finite and mean nothing.
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
        if c.positions == "learned":
            self.pos_embed = nn.Embed(
                c.max_length,
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
        self.final_norm = make_norm(c)

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
        index, segments_BS = jnp.zeros((), jnp.int32), batch.segment_ids
        if cache is not None:
            index = cache.index
            segments_BS = jax.lax.dynamic_update_slice_in_dim(
                cache.segment_ids, batch.segment_ids, index, axis=1
            )
        views = self._views(batch.segment_ids, positions, segments_BS, index)
        stored = None if cache is None else (cache.keys, cache.values)
        # Tokens in one row from here on: XLA's CPU backward pass of a matrix product is
        # up to three times slower with two leading axes, and no faster anywhere.
        tokens_N = jnp.where(real, batch.tokens, 0).reshape(-1)
        x_ND = self._embed(tokens_N, positions.reshape(-1))
        layers, shared = jnp.arange(self.config.n_layers), _Shared(index, views)
        (x_ND, stored), _ = self.blocks((x_ND, stored), layers, shared)
        if stored is not None:
            index = index + batch.tokens.shape[1]
            cache = KVCache(*stored, segment_ids=segments_BS, index=index)
        hidden_ND = self.final_norm(x_ND)
        return hidden_ND.reshape(*batch.tokens.shape, self.config.d_model), cache

    def _embed(self, tokens_N: Array, positions_N: Array) -> Array:
        c = self.config
        x_ND = self.embed(tokens_N)
        if c.scale_embeddings:
            x_ND = x_ND * jnp.asarray(c.d_model**0.5, c.dtype)
        return x_ND if c.positions == "rope" else x_ND + self.pos_embed(positions_N)

    def _views(
        self, segment_ids: Array, positions: Array, segments_BS: Array, index: Array
    ) -> tuple[View, ...]:
        """One view where all layers are of a kind, else (global, local)."""
        c = self.config
        lengths = None
        if c.rope.kind == "dynamic":
            lengths = sequence_lengths(segment_ids, positions)

        def view(rope: RopeConfig, window: int | None) -> View:
            cos, sin = None, None
            if c.positions == "rope":
                cos, sin = rotary(positions, c.d_head, rope, lengths)
            mask_BTS = attention_mask(segment_ids, segments_BS, index, window)
            return View(cos, sin, mask_BTS)

        near = c.rope
        if c.rope.local_theta is not None:
            near = RopeConfig(theta=c.rope.local_theta, dims=c.rope.dims)
        views = []
        if len(c.local_layers) < c.n_layers:
            views.append(view(c.rope, None))
        if c.local_layers:
            views.append(view(near, c.window))
        return tuple(views)

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
