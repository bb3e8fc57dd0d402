"""Keys and values of the tokens read so far: what decoding does not compute again.

A ring of S columns that all rows share: every step writes one column, for all rows at
once and in place, wherever each row began. A row's tokens are the columns before the
one that is written next; when its sequence has ended, another may take its place
(`KVCache.insert`) at any time. Rows that continue the same prompt may share the
columns of that, which then are there, and are read, once (`KVCache.share`).

Keys lie [d, S] and values [S, d] within a head, the way in which their products with
one query read them from end to end.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.types import Array

INT8_MAX = 127.0


@struct.dataclass
class LayerCache:
    """Keys and values of one layer; scales only where they are int8."""

    keys: Array  # [B, K, d, S]
    values: Array  # [B, K, S, d]
    key_scales: Array | None  # [B, K, S] float32
    value_scales: Array | None  # [B, K, S] float32
    prefix: "LayerCache | None" = None  # of B/C rows: C rows here follow each of them

    @classmethod
    def empty(cls, config: TransformerConfig, rows: int, columns: int) -> "LayerCache":
        """Room for rows × columns tokens."""
        c = config
        dtype = c.cache_dtype or c.dtype
        head = (rows, c.n_kv_heads)
        scales = lambda: (
            jnp.zeros((*head, columns), jnp.float32) if dtype == "int8" else None
        )
        return cls(
            keys=jnp.zeros((*head, c.d_head, columns), dtype),
            values=jnp.zeros((*head, columns, c.d_head), dtype),
            key_scales=scales(),
            value_scales=scales(),
        )

    def write(self, k_BTKd: Array, v_BTKd: Array, column: Array) -> "LayerCache":
        """Puts T tokens into the columns from ``column`` on, which must exist."""
        k_BKTd, v_BKTd = jnp.swapaxes(k_BTKd, 1, 2), jnp.swapaxes(v_BTKd, 1, 2)
        key_scales, value_scales = self.key_scales, self.value_scales
        at = (0, 0, column)
        if key_scales is not None and value_scales is not None:
            k_BKTd, new_BKT = quantize(k_BKTd)
            key_scales = jax.lax.dynamic_update_slice(key_scales, new_BKT, at)
            v_BKTd, new_BKT = quantize(v_BKTd)
            value_scales = jax.lax.dynamic_update_slice(value_scales, new_BKT, at)
        k_BKdT = jnp.swapaxes(k_BKTd, 2, 3).astype(self.keys.dtype)
        v_BKTd = v_BKTd.astype(self.values.dtype)
        return dataclasses.replace(
            self,
            keys=jax.lax.dynamic_update_slice(self.keys, k_BKdT, (0, 0, 0, column)),
            values=jax.lax.dynamic_update_slice(self.values, v_BKTd, (*at, 0)),
            key_scales=key_scales,
            value_scales=value_scales,
        )

    def insert(self, fresh: "LayerCache", put: Callable) -> "LayerCache":
        """Each array by ``put(held, new, axis of the columns)``."""
        scale = lambda held, new: None if held is None else put(held, new, 2)
        return dataclasses.replace(
            self,
            keys=put(self.keys, fresh.keys, 3),
            values=put(self.values, fresh.values, 2),
            key_scales=scale(self.key_scales, fresh.key_scales),
            value_scales=scale(self.value_scales, fresh.value_scales),
        )


def quantize(x: Array) -> tuple[Array, Array]:
    """int8 with one scale a vector: x ≈ q · s, s = max|x| / 127.

    Absolute-maximum quantisation as in LLM.int8(), arXiv:2208.07339, section 2.

    Args:
      x: [..., d] float.

    Returns:
      q [..., d] int8, s [...] float32. A vector of zeros stays one.

    >>> quantize(jnp.array([1.0, -0.5, 0.0]))[0].tolist()
    [127, -64, 0]
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / INT8_MAX
    safe = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(x / safe[..., None]).astype(jnp.int8), scale


@struct.dataclass
class KVCache:
    """The tokens read so far. A column of segment 0 is unused, or was padding."""

    layers: tuple[LayerCache, ...]
    segment_ids: Array  # [B, S] int32
    index: Array  # [] int32: columns written so far; the next one is index mod S
    prefix_segments: Array | None = None  # [B/C, P] int32: of the layers' prefixes

    @classmethod
    def empty(cls, config: TransformerConfig, rows: int, columns: int) -> "KVCache":
        """A cache without a token in it."""
        layer = lambda: LayerCache.empty(config, rows, columns)
        return cls(
            layers=tuple(layer() for _ in range(config.n_layers)),
            segment_ids=jnp.zeros((rows, columns), jnp.int32),
            index=jnp.zeros((), jnp.int32),
        )

    def repeat(self, times: int) -> "KVCache":
        """Every row ``times`` times, one copy beside the other."""
        layers, segments = jax.tree.map(
            lambda x: jnp.repeat(x, times, axis=0), (self.layers, self.segment_ids)
        )
        return KVCache(layers, segments, self.index)

    def share(self, times: int, columns: int) -> "KVCache":
        """Room for ``columns`` tokens in ``times`` rows after each of these ones.

        They follow what is in this cache, of which there is no copy. It must be full,
        and the new columns, which may be widened, must not come round.
        """
        rows = times * self.segment_ids.shape[0]

        def room(x: Array, _: Array, axis: int) -> Array:
            return jnp.zeros(
                (rows, *x.shape[1:axis], columns, *x.shape[axis + 1 :]), x.dtype
            )

        layers = tuple(
            dataclasses.replace(layer.insert(layer, room), prefix=layer)
            for layer in self.layers
        )
        empty = room(self.segment_ids, self.segment_ids, 1)
        return KVCache(layers, empty, jnp.zeros((), jnp.int32), self.segment_ids)

    def columns(self) -> tuple[Array, Array]:
        """(segments [B, P + S], next column's index): the shared ones, then its own."""
        if self.prefix_segments is None:
            return self.segment_ids, self.index
        times = self.segment_ids.shape[0] // self.prefix_segments.shape[0]
        shared = jnp.repeat(self.prefix_segments, times, axis=0)
        segments = jnp.concatenate([shared, self.segment_ids], axis=1)
        return segments, shared.shape[1] + self.index

    def take(self, rows: Array) -> "KVCache":
        """These rows alone: [b] int32."""
        layers, segments = jax.tree.map(
            lambda x: x[rows], (self.layers, self.segment_ids)
        )
        return KVCache(layers, segments, self.index)

    def widen(self, columns: int) -> "KVCache":
        """Room for more tokens: so many new columns, before the ring has come round."""

        def pad(x: Array, _: Array, axis: int) -> Array:
            room = [(0, 0)] * x.ndim
            room[axis] = (0, columns)
            return jnp.pad(x, room)

        layers = tuple(layer.insert(layer, pad) for layer in self.layers)
        segments = pad(self.segment_ids, self.segment_ids, 1)
        return dataclasses.replace(self, layers=layers, segment_ids=segments)

    def insert(self, fresh: "KVCache", rows: Array) -> "KVCache":
        """The rows of another cache instead of these ones.

        Args:
          fresh: b rows whose columns are all written; not more columns than here.
          rows: [b] int32, where they go.
        """
        columns = self.segment_ids.shape[1]

        def put(held: Array, new: Array, axis: int) -> Array:
            room = [(0, 0)] * new.ndim
            room[axis] = (0, columns - new.shape[axis])
            # The last column of the new rows is the one before the next to be written.
            start = jnp.mod(self.index - new.shape[axis], columns)
            new = jnp.roll(jnp.pad(new, room), start, axis)

            def put_row(i: Array, held: Array) -> Array:
                row = new[i][None]
                return jax.lax.dynamic_update_slice_in_dim(held, row, rows[i], 0)

            return jax.lax.fori_loop(0, new.shape[0], put_row, held)

        layers = tuple(
            layer.insert(new, put)
            for layer, new in zip(self.layers, fresh.layers, strict=True)
        )
        segments = put(self.segment_ids, fresh.segment_ids, 1)
        return KVCache(layers, segments, self.index)
