"""One layer, and the ways through a stack of them.

Axes in names: B rows, T tokens of a row, N = B·T tokens of the batch, S those whose
hidden states are asked for, M = B·S, D model width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlhf_jax.models.attention import MIXED
from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layers import MLP, Attention, MixtureOfExperts, make_norm
from rlhf_jax.models.masks import View
from rlhf_jax.types import Array, Params

# What a layer keeps for its backward pass: results of matrix products and of attention.
# Norms, activations and rotations are computed again, which costs less than to read
# them, and takes a third of the memory away.
KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(MIXED),
)


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
        self,
        x_ND: Array,
        layer: Array | int,
        views: tuple[View, ...],
        cached: LayerCache | None = None,
    ) -> tuple[Array, LayerCache | None]:
        c, view = self.config, self.view(views, layer)
        read_ND = self.attn_norm(x_ND) if c.pre_norm else x_ND
        added_ND, cached = self.attn(read_ND, view, cached)
        if c.post_norm:
            added_ND = self.attn_post_norm(added_ND)
        x_ND = view.asking(x_ND)
        sum_ND = x_ND + added_ND
        read_ND = x_ND if c.parallel_residual else sum_ND
        added_ND = self.mlp(self.mlp_norm(read_ND) if c.pre_norm else read_ND)
        if c.post_norm:
            added_ND = self.mlp_post_norm(added_ND)
        return sum_ND + added_ND, cached

    def view(self, views: tuple[View, ...], layer: Array | int) -> View:
        """What this layer sees; a scanned layer, of both kinds, selects."""
        if len(views) == 1:
            return views[0]
        if isinstance(layer, int):
            return views[layer in self.config.local_layers]
        local = jnp.isin(layer, jnp.array(self.config.local_layers))
        return jax.tree.map(lambda far, near: jnp.where(local, near, far), *views)


def each_layer(
    c: TransformerConfig,
    params: Params,
    x_ND: Array,
    views: tuple[View, ...],
    cached: tuple[LayerCache, ...],
) -> tuple[Array, tuple[LayerCache, ...]]:
    """The layers one by one, each with arrays of its own in the cache.

    A scan would carry all layers' keys as one array, of which it copies a layer's part
    out before it is read. ``params`` are stacked, or a tuple of each layer's.
    """
    block, written = Block(c, parent=None), []
    for layer, held in enumerate(cached):
        own = params[layer] if isinstance(params, tuple) else layer_of(params, layer)
        x_ND, new = block.apply({"params": own}, x_ND, layer, views, held)
        written.append(new)
    return x_ND, tuple(written)


def at_columns(
    c: TransformerConfig,
    params: Params,
    x_ND: Array,
    views: tuple[View, ...],
    last: View,
) -> Array:
    """Hidden states [M, D] of the tokens that ask in the last layer's view.

    Of all other tokens that layer computes keys and values, and nothing else.
    """
    block, final = Block(c, parent=None), c.n_layers - 1
    keep = partial(jax.checkpoint, policy=None if c.remat else KEPT)

    def run(own: Params, x_ND: Array, layer: Array | int, *views: View) -> Array:
        return block.apply({"params": own}, x_ND, layer, views)[0]

    if c.scan_unroll >= c.n_layers:
        alone = keep(run, static_argnums=2)
        *before, own = unstack(params)
        for layer, other in enumerate(before):
            x_ND = alone(other, x_ND, layer, *views)
        return alone(own, x_ND, final, last)

    def step(carried: tuple[Array, Array], given: tuple[Params, Array]):
        x_ND, _ = carried
        own, layer = given
        # A loop over all layers but the last would copy their part of the stack.
        return jax.lax.cond(
            layer == final,
            lambda: (x_ND, run(own, x_ND, final, last)),
            lambda: (run(own, x_ND, layer, *views), none_MD),
        ), None

    none_MD = jnp.zeros_like(last.asking(x_ND))
    (_, x_MD), _ = jax.lax.scan(
        keep(step, prevent_cse=False),
        (x_ND, none_MD),
        (params, jnp.arange(c.n_layers)),
        unroll=c.scan_unroll,
    )
    return x_MD


def layer_of(stacked: Params, layer: int) -> Params:
    """The parameters of one layer."""
    return jax.tree.map(lambda x: x[layer], stacked)


def unstack(stacked: Params) -> list[Params]:
    """The parameters of each layer, whose gradients are stacked again in one go."""
    leaves, tree = jax.tree.flatten(stacked)
    layers = zip(*(jnp.split(x, x.shape[0]) for x in leaves), strict=True)
    return [tree.unflatten([x[0] for x in own]) for own in layers]
