"""What a layer is made of: projections, norms, attention, MLPs.

Axes in names: B rows, T tokens of a row, N = B·T tokens of the batch, S slots of the
cache, D model width, H query heads, K key-value heads, d head width, E experts,
F width of the MLP.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlhf_jax.models.attention import attend, attend_cached
from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.masks import View
from rlhf_jax.models.rope import rotate
from rlhf_jax.rows import join_rows, split_rows, take_columns
from rlhf_jax.types import Array, Params


class Projection(nn.Module):
    """x·W + b, and a low-rank term where the parameters have one (`models.lora`).

    W ~ N(0, init_scale/in), b = 0.
    """

    features: int
    config: TransformerConfig
    use_bias: bool = False
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x_NI: Array) -> Array:
        c = self.config
        normal = nn.initializers.variance_scaling(self.init_scale, "fan_in", "normal")
        shape = (x_NI.shape[-1], self.features)
        if self.has_variable("params", TRANSPOSED):
            y_NO = product_transposed(x_NI, self.get_variable("params", TRANSPOSED), c)
        else:
            kernel_IO = self.param("kernel", normal, shape, c.param_dtype)
            y_NO = x_NI @ kernel_IO.astype(c.dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias_O = self.param("bias", zeros, (self.features,), c.param_dtype)
            y_NO = y_NO + bias_O.astype(c.dtype)[None]
        return y_NO + low_rank(self, x_NI)


TRANSPOSED = "kernel_OI"  # in place of "kernel" where `decode_layout` put it
VECTOR, FEW_ROWS = 16, 128  # float32 of a vector register; rows of a decode step


def product_transposed(x_NI: Array, kernel_OI: Array, c: TransformerConfig) -> Array:
    """x·Wᵀ, for few rows as (W·xᵀ)ᵀ: how XLA's CPU backend reads W once, and in order.

    The other operand of its products is packed anew each time, and for few rows that is
    most of the work; rows that do not fill its vectors cost more than that, though,
    when there are many. Without the barriers it moves the transpositions into the
    product.
    """
    kernel_OI, rows = kernel_OI.astype(c.dtype), x_NI.shape[0]
    if rows > FEW_ROWS or (rows > 2 * VECTOR and rows % VECTOR):
        return jax.lax.dot_general(x_NI, kernel_OI, (((1,), (1,)), ((), ())))
    barrier = jax.lax.optimization_barrier
    return barrier(kernel_OI @ barrier(x_NI.T)).T


def low_rank(projection: nn.Module, x_NI: Array) -> Array | float:
    """s·(x·A)·B where the parameters of a projection have adapters; else 0."""
    if not projection.has_variable("params", "lora_a"):
        return 0.0
    a_IR, b_RO, scale = (
        projection.get_variable("params", name).astype(x_NI.dtype)
        for name in ("lora_a", "lora_b", "lora_scale")
    )
    return scale * ((x_NI @ a_IR) @ b_RO)


def merged_kernel(params: Params) -> Array:
    """W + s·A·B of a projection's parameters, W where they have no adapters."""
    if "lora_a" not in params:
        return params["kernel"]
    a_IR, b_RO, scale = (params[name] for name in ("lora_a", "lora_b", "lora_scale"))
    return params["kernel"] + (scale * (a_IR @ b_RO)).astype(params["kernel"].dtype)


class CenteredRMSNorm(nn.Module):
    """RMSNorm times 1 + scale, all of it in float32: Gemma's."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        zeros = nn.initializers.zeros
        scale = self.param("scale", zeros, (x.shape[-1],), c.param_dtype)
        plain = nn.RMSNorm(epsilon=c.norm_eps, dtype="float32", use_scale=False)
        factor = 1.0 + scale.astype(jnp.float32)
        return (plain(x) * jnp.expand_dims(factor, range(x.ndim - 1))).astype(c.dtype)


def make_norm(config: TransformerConfig) -> nn.Module:
    """The norm of the config, its statistics in float32 whatever the dtype."""
    c = config
    if c.norm == "centered_rms":
        return CenteredRMSNorm(c)
    if c.norm == "layer":
        # The fast variance E[x²] − E[x]² cancels where a mean is large (GPT-2's are).
        return nn.LayerNorm(
            epsilon=c.norm_eps,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            use_fast_variance=False,
        )
    return nn.RMSNorm(epsilon=c.norm_eps, dtype=c.dtype, param_dtype=c.param_dtype)


class Attention(nn.Module):
    """Causal attention whose key and value heads serve groups of query heads.

    Ainslie et al. 2023, arXiv:2305.13245.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        project = partial(Projection, config=c)
        self.q_proj = project(c.n_heads * c.d_head, use_bias=c.qkv_bias)
        self.k_proj = project(c.n_kv_heads * c.d_head, use_bias=c.qkv_bias)
        self.v_proj = project(c.n_kv_heads * c.d_head, use_bias=c.qkv_bias)
        self.o_proj = project(
            c.d_model, use_bias=c.o_bias, init_scale=1 / (2 * c.n_layers)
        )
        if c.qk_norm != "none":
            self.q_norm, self.k_norm = make_norm(c), make_norm(c)

    def __call__(
        self, x_ND: Array, view: View, cached: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        c = self.config
        q_BTHd, k_BTKd, v_BTKd = self._heads(x_ND, view)
        if cached is not None:
            column = jnp.zeros((), jnp.int32) if view.column is None else view.column
            cached = cached.write(k_BTKd, v_BTKd, column)
        if cached is None or view.column is None:
            mixed_BTHd = attend(q_BTHd, k_BTKd, v_BTKd, view.masks_BQS, c)
        else:
            mixed_BTHd = attend_cached(q_BTHd, cached, view.masks_BQS[0], c)
        mixed_BTO = mixed_BTHd.reshape(*mixed_BTHd.shape[:2], c.n_heads * c.d_head)
        return self.o_proj(join_rows(mixed_BTO)), cached

    def _heads(self, x_ND: Array, view: View) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the tokens, normalised and turned."""
        c = self.config
        rows = partial(split_rows, rows=view.masks_BQS[0].shape[0])
        asks_ND = view.asking(x_ND)
        q_NO, k_NO, v_NO = self.q_proj(asks_ND), self.k_proj(x_ND), self.v_proj(x_ND)
        if view.column is not None:
            # Else the compiler for TPU wants these products in the cache's layout and,
            # for that, transposed copies of their weights: 0.2 GB at 1B parameters.
            q_NO, k_NO, v_NO = jax.lax.optimization_barrier((q_NO, k_NO, v_NO))
        if c.qk_norm == "all":
            q_NO, k_NO = self.q_norm(q_NO), self.k_norm(k_NO)
        q_BTHd = rows(q_NO.reshape(-1, c.n_heads, c.d_head))
        k_BTKd = rows(k_NO.reshape(-1, c.n_kv_heads, c.d_head))
        if c.qk_norm == "head":
            q_BTHd, k_BTKd = self.q_norm(q_BTHd), self.k_norm(k_BTKd)
        cos_BTF, sin_BTF = view.cos_BTF, view.sin_BTF
        if cos_BTF is not None and sin_BTF is not None:
            k_BTKd = rotate(k_BTKd, cos_BTF, sin_BTF)
            if view.at_BS is not None:
                cos_BTF, sin_BTF = (
                    take_columns(x, view.at_BS) for x in (cos_BTF, sin_BTF)
                )
            q_BTHd = rotate(q_BTHd, cos_BTF, sin_BTF)
        return q_BTHd, k_BTKd, rows(v_NO).reshape(k_BTKd.shape)


ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


class MLP(nn.Module):
    """down(act(gate(x)) ⊙ up(x)), or down(act(up(x))) where it is not gated.

    Shazeer 2020, arXiv:2002.05202.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        project = partial(Projection, config=c, use_bias=c.mlp_bias)
        if c.gated_mlp:
            self.gate_proj = project(c.d_ff)
        self.up_proj = project(c.d_ff)
        self.down_proj = project(c.d_model, init_scale=1 / (2 * c.n_layers))

    def __call__(self, x_ND: Array) -> Array:
        act = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            return self.down_proj(act(self.gate_proj(x_ND)) * self.up_proj(x_ND))
        return self.down_proj(act(self.up_proj(x_ND)))


class MixtureOfExperts(nn.Module):
    """Σᵢ wᵢ·MLPᵢ(x) over the k experts that a router finds most probable.

    Jiang et al. 2024 (Mixtral), arXiv:2401.04088. No token is dropped and no expert has
    a capacity: a row does not depend on the rows beside it.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.router = Projection(c.n_experts, c)
        self.gate_proj = ExpertProjection(c.d_ff, c)
        self.up_proj = ExpertProjection(c.d_ff, c)
        self.down_proj = ExpertProjection(c.d_model, c, 1 / (2 * c.n_layers))

    def __call__(self, x_ND: Array) -> Array:
        c = self.config
        probs_NE = jax.nn.softmax(self.router(x_ND).astype(jnp.float32), axis=-1)
        weights_Nk, chosen_Nk = jax.lax.top_k(probs_NE, c.experts_per_token)
        if c.normalize_experts:
            weights_Nk = weights_Nk / jnp.sum(weights_Nk, axis=-1, keepdims=True)
        # Tokens in the order of their experts, so that each expert's are one block.
        order_M = jnp.argsort(chosen_Nk.ravel(), stable=True)
        token_M = order_M // c.experts_per_token
        sizes_E = jnp.bincount(chosen_Nk.ravel(), length=c.n_experts)
        x_MD = x_ND[token_M]
        gate_MF = ACTIVATIONS[c.activation](self.gate_proj(x_MD, sizes_E))
        y_MD = self.down_proj(gate_MF * self.up_proj(x_MD, sizes_E), sizes_E)
        y_MD = y_MD * weights_Nk.ravel()[order_M].astype(y_MD.dtype)[:, None]
        return jnp.zeros_like(x_ND).at[token_M].add(y_MD)


class ExpertProjection(nn.Module):
    """x·W of each token's own expert; tokens come sorted by expert."""

    features: int
    config: TransformerConfig
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x_MI: Array, sizes_E: Array) -> Array:
        c = self.config
        normal = nn.initializers.variance_scaling(
            self.init_scale, "fan_in", "normal", batch_axis=0
        )
        shape = (c.n_experts, x_MI.shape[-1], self.features)
        kernel_EIO = self.param("kernel", normal, shape, c.param_dtype)
        dot: Any = jax.lax.ragged_dot
        return dot(x_MI, kernel_EIO.astype(c.dtype), sizes_E)
