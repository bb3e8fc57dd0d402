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

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlhf_jax.errors import UserError
from rlhf_jax.models.cache import KVCache
from rlhf_jax.models.config import RopeConfig, TransformerConfig
from rlhf_jax.models.layers import TRANSPOSED, make_norm
from rlhf_jax.models.masks import View, attention_mask, block_masks, column_mask
from rlhf_jax.models.rope import rotary
from rlhf_jax.models.stack import KEPT, Block, at_columns, each_layer, layer_of
from rlhf_jax.rows import join_rows, row_parts, split_rows, take_columns
from rlhf_jax.types import Array, Params, TokenBatch

EMBEDDING_STD = 0.02


def sequence_lengths(segment_ids: Array, positions: Array) -> Array:
    """How many tokens the sequence of each token has in the batch. No reference.

    >>> segments = jnp.array([[1, 1, 2, 0]])
    >>> sequence_lengths(segments, jnp.array([[0, 1, 0, 0]])).tolist()
    [[2, 2, 1, 1]]
    """
    same_BTT = segment_ids[:, :, None] == segment_ids[:, None, :]
    return 1 + jnp.max(jnp.where(same_BTT, positions[:, None, :], 0), axis=-1)


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
        # Inside a loop XLA cannot merge the recomputation with the first pass anyway.
        block = nn.remat(
            Block,
            prevent_cse=c.scan_unroll >= c.n_layers,
            policy=None if c.remat else KEPT,
        )
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
        at: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Hidden states [B, T, D], and the cache that holds the batch, if asked for.

        Args:
          batch: the mask is not looked at.
          cache: what the batch follows. It is a ring, of which a batch of several
            tokens must not cross the end.
          cache_size: slots of a new cache that begins with the batch.
          at: [B, S] int32 columns; hidden states [B, S, D] of these alone. The last
            layer is then computed for them only.

        Raises:
          UserError: both given, or more slots than there are.
        """
        fresh = cache is None
        cache = self._open_cache(batch.tokens.shape, cache, cache_size)
        real = batch.segment_ids > 0
        positions = jnp.where(real, batch.positions, 0)
        seen, column = None, None
        if cache is not None:
            first = jnp.mod(cache.index, cache.segment_ids.shape[1])
            segments_BS = jax.lax.dynamic_update_slice_in_dim(
                cache.segment_ids, batch.segment_ids, first, axis=1
            )
            cache = dataclasses.replace(cache, segment_ids=segments_BS)
            if not fresh:  # else the batch is all that there is to see
                seen, column = cache.columns(), first
        views = self._views(batch, positions, seen, column)
        # Tokens in one row from here on: XLA's CPU backward pass of a matrix product is
        # up to three times slower with two leading axes, and no faster anywhere.
        tokens_N = join_rows(jnp.where(real, batch.tokens, 0))
        x_ND = self._embed(tokens_N, join_rows(positions))
        # Where a mesh cuts rows, the devices without such a column would only wait.
        few = at if cache is None and row_parts(batch.tokens.shape[1]) == 1 else None
        if cache is not None:
            params: Any = self.variables["params"]["blocks"]
            x_ND, layers = each_layer(self.config, params, x_ND, views, cache.layers)
            written = cache.index + batch.tokens.shape[1]
            cache = dataclasses.replace(cache, layers=layers, index=written)
        elif few is not None:
            params = self.variables["params"]["blocks"]
            last = self._last_view(views, batch.segment_ids, few)
            x_ND = at_columns(self.config, params, x_ND, views, last)
        else:
            x_ND, _ = self.blocks(x_ND, jnp.arange(self.config.n_layers), views)
        hidden_BTD = split_rows(self.final_norm(x_ND), batch.tokens.shape[0])
        if at is not None and few is None:
            hidden_BTD = take_columns(hidden_BTD, at)
        return hidden_BTD, cache

    def _embed(self, tokens_N: Array, positions_N: Array) -> Array:
        c = self.config
        x_ND = self.embed(tokens_N)
        if c.scale_embeddings:
            x_ND = x_ND * jnp.asarray(c.d_model**0.5, c.dtype)
        return x_ND if c.positions == "rope" else x_ND + self.pos_embed(positions_N)

    def _views(
        self,
        batch: TokenBatch,
        positions: Array,
        seen: tuple[Array, Array] | None,
        column: Array | None,
    ) -> tuple[View, ...]:
        """One view where all layers are of a kind, else (global, local).

        ``seen`` is what `KVCache.columns` says; None: the batch sees itself alone.
        """
        c = self.config
        lengths = None
        if c.rope.kind == "dynamic":
            lengths = sequence_lengths(batch.segment_ids, positions)

        def view(rope: RopeConfig, window: int | None) -> View:
            cos, sin = None, None
            if c.positions == "rope":
                cos, sin = rotary(positions, c.d_head, rope, lengths)
            if seen is None:
                masks = block_masks(batch.segment_ids, window)
            else:
                masks = (attention_mask(batch.segment_ids, *seen, window),)
            return View(cos, sin, masks, column)

        near = c.rope
        if c.rope.local_theta is not None:
            near = RopeConfig(theta=c.rope.local_theta, dims=c.rope.dims)
        views = []
        if len(c.local_layers) < c.n_layers:
            views.append(view(c.rope, None))
        if c.local_layers:
            views.append(view(near, c.window))
        return tuple(views)

    def _last_view(
        self, views: tuple[View, ...], segment_ids: Array, at_BS: Array
    ) -> View:
        """What the last layer sees where only the tokens of these columns ask."""
        c = self.config
        local = c.n_layers - 1 in c.local_layers
        mask_BST = column_mask(segment_ids, at_BS, c.window if local else None)
        view = views[-1 if local else 0]
        return dataclasses.replace(view, masks_BQS=(mask_BST,), at_BS=at_BS)

    def _open_cache(
        self, shape: tuple[int, ...], cache: KVCache | None, cache_size: int | None
    ) -> KVCache | None:
        """The cache to read and write, or None; checks that the batch fits."""
        rows, length = shape
        if cache is not None and cache_size is not None:
            raise UserError("cache and cache_size are both given: give one of them")
        slots = length if cache_size is None else cache_size
        if cache is not None:
            slots = cache.segment_ids.shape[1]
        if length > slots:
            raise UserError(
                f"{length} tokens do not fit the cache of {slots} slots: enlarge it"
            )
        if cache is not None and cache.prefix_segments is not None:
            slots += cache.prefix_segments.shape[1]
        if slots > self.config.max_length:
            raise UserError(
                f"rows of {slots} slots exceed max_length={self.config.max_length}: "
                "shorten prompts or max_new_tokens, or raise it"
            )
        if cache_size is None:
            return cache
        return KVCache.empty(self.config, rows, cache_size)


def unstack_layers(params: Params) -> Params:
    """Parameters whose layers are arrays of their own, for a long decode loop.

    No reference. Stacked layers are one array a projection, of which XLA's CPU backend
    copies a layer's part every time that it is read. Taken apart once, before a loop,
    they are read where they lie: 1.1 to 1.4 times the tokens a second there. On other
    backends the products read a part of the stack in place, and this would only be a
    second copy of the weights.

    Args:
      params: of a network with a trunk.

    Returns:
      The same tree with a tuple in place of the trunk's stacked "blocks"; for calls
      with a cache only.

    >>> params = {"trunk": {"blocks": {"w": jnp.ones((2, 3))}, "embed": 1}}
    >>> [block["w"].shape for block in unstack_layers(params)["trunk"]["blocks"]]
    [(3,), (3,)]
    """
    blocks = params["trunk"]["blocks"]
    count = jax.tree.leaves(blocks)[0].shape[0]
    layers = tuple(layer_of(blocks, layer) for layer in range(count))
    return {**params, "trunk": {**params["trunk"], "blocks": layers}}


def decode_layout(params: Params) -> Params:
    """Parameters as a decode loop reads them fastest on the backend in use.

    No reference. On CPU `unstack_layers`, and the weights of the projections transposed
    (`layers.product_transposed`); the parameters themselves elsewhere.
    """
    if jax.default_backend() != "cpu":
        return params
    return _transpose_kernels(unstack_layers(params))


def _transpose_kernels(node: Params) -> Params:
    if isinstance(node, tuple):
        return tuple(map(_transpose_kernels, node))
    if not isinstance(node, dict):
        return node
    if "kernel" not in node or node["kernel"].ndim != 2:
        return {name: _transpose_kernels(child) for name, child in node.items()}
    rest = {name: child for name, child in node.items() if name != "kernel"}
    return rest | {TRANSPOSED: node["kernel"].T}
