"""Networks with heads on the trunk, and the pure functions that stages call.

Parameters have the same names in every network, so that one starts from another:
"trunk" (``Transformer``), "lm_head", "value_head", "score_head".
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlhf_jax.errors import UserError
from rlhf_jax.models.attention import soft_cap
from rlhf_jax.models.cache import KVCache
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layers import (
    TRANSPOSED,
    low_rank,
    merged_kernel,
    product_transposed,
)
from rlhf_jax.models.transformer import EMBEDDING_STD, Transformer
from rlhf_jax.rows import join_rows, split_rows
from rlhf_jax.types import (
    ApplyFn,
    Array,
    ModelOutput,
    Params,
    Readout,
    ScoreFn,
    TokenBatch,
)


class ScoreHead(nn.Module):
    """A number a token: gain · (h·w + b) + offset, in float32.

    Ziegler et al. 2019, arXiv:1909.08593: w ~ N(0, 1/√(D+1)) (that is the standard
    deviation), b = 0. To give scores mean 0 and deviation 1 over reference samples with
    mean μ and deviation σ, set gain = 1/σ and offset = −gain·μ.
    """

    num_outputs: int = 1

    @nn.compact
    def __call__(self, hidden_BTD: Array) -> Array:
        width = hidden_BTD.shape[-1]
        normal = nn.initializers.normal((width + 1) ** -0.5)
        kernel_DN = self.param("kernel", normal, (width, self.num_outputs))
        bias_N = self.param("bias", nn.initializers.zeros, (self.num_outputs,))
        gain = self.param("gain", nn.initializers.ones, ())
        offset = self.param("offset", nn.initializers.zeros, ())
        raw_BTN = hidden_BTD.astype(jnp.float32) @ kernel_DN + bias_N[None, None, :]
        return gain * raw_BTN + offset


class ValueHead(nn.Module):
    """The value of the state after each token, float32; 0 before training.

    Zero-initialised as in Ziegler et al. 2019, arXiv:1909.08593.
    """

    @nn.compact
    def __call__(self, hidden_BTD: Array) -> Array:
        zeros = nn.initializers.zeros
        width = hidden_BTD.shape[-1]
        kernel_D1 = self.param("kernel", zeros, (width, 1))
        bias_1 = self.param("bias", zeros, (1,))
        values_BT1 = hidden_BTD.astype(jnp.float32) @ kernel_D1 + bias_1[None, None, :]
        return values_BT1[:, :, 0]


class OutputProjection(nn.Module):
    """h·W in float32 whatever the dtype, with a low-rank term (`models.lora`)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden_ND: Array) -> Array:
        c = self.config
        normal = nn.initializers.normal(EMBEDDING_STD)
        if self.has_variable("params", TRANSPOSED):
            kernel_VD = self.get_variable("params", TRANSPOSED)
            logits_NV = product_transposed(hidden_ND, kernel_VD, c).astype(jnp.float32)
        else:
            kernel_DV = self.param(
                "kernel", normal, (c.d_model, c.vocab_size), c.param_dtype
            )
            logits_NV = _dot_to_float32(
                hidden_ND, kernel_DV.astype(c.dtype), (((1,), (0,)), ((), ()))
            )
        return logits_NV + low_rank(self, hidden_ND)


class CausalLM(nn.Module):
    """A policy: trunk and output projection, which may be the embedding transposed."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.trunk = Transformer(c)
        if not c.tie_embeddings:
            self.lm_head = OutputProjection(c)

    def logits(self, hidden_BTD: Array) -> Array:
        """float32 [B, T, V], for the token after each."""
        hidden_ND = join_rows(hidden_BTD)
        if self.config.tie_embeddings:
            embedding_VD = self.trunk.embed.embedding.astype(hidden_ND.dtype)
            logits_NV = _dot_to_float32(
                hidden_ND, embedding_VD, (((1,), (1,)), ((), ()))
            )
        else:
            logits_NV = self.lm_head(hidden_ND)
        logits_NV = soft_cap(logits_NV, self.config.logit_softcap)
        return split_rows(logits_NV, hidden_BTD.shape[0])

    def readout(self, hidden_BTD: Array) -> Readout | None:
        """What a training step needs instead of the logits; None while decoding."""
        c, params = self.config, self.variables["params"]
        if c.tie_embeddings:
            unembed_DV = params["trunk"]["embed"]["embedding"].T
        elif "kernel" in params["lm_head"]:
            unembed_DV = merged_kernel(params["lm_head"])
        else:
            return None
        unembed_DV = unembed_DV.astype(hidden_BTD.dtype)
        return Readout(hidden_BTD, unembed_DV, c.logit_softcap)

    def __call__(
        self,
        batch: TokenBatch,
        *,
        cache: KVCache | None = None,
        cache_size: int | None = None,
    ) -> ModelOutput:
        hidden_BTD, cache = self.trunk(batch, cache=cache, cache_size=cache_size)
        logits_BTV = self.logits(hidden_BTD)
        return ModelOutput(logits_BTV, cache=cache, readout=self.readout(hidden_BTD))


class ActorCritic(CausalLM):
    """A policy and its critic on one trunk, as in Ziegler et al. 2019."""

    def setup(self):
        super().setup()
        self.value_head = ValueHead()

    def __call__(
        self,
        batch: TokenBatch,
        *,
        cache: KVCache | None = None,
        cache_size: int | None = None,
    ) -> ModelOutput:
        hidden_BTD, cache = self.trunk(batch, cache=cache, cache_size=cache_size)
        logits_BTV, values_BT = self.logits(hidden_BTD), self.value_head(hidden_BTD)
        return ModelOutput(logits_BTV, values_BT, cache, self.readout(hidden_BTD))


class ScoreModel(nn.Module):
    """A reward model or a separate critic: [B, T, num_outputs] float32.

    With ``at`` [B, S], only at these columns: [B, S, num_outputs].
    """

    config: TransformerConfig
    num_outputs: int = 1

    def setup(self):
        self.trunk = Transformer(self.config)
        self.score_head = ScoreHead(self.num_outputs)

    def __call__(self, batch: TokenBatch, *, at: Array | None = None) -> Array:
        hidden_BTD, _ = self.trunk(batch, at=at)
        return self.score_head(hidden_BTD)


def init_params(module: nn.Module, *, key: Array) -> Params:
    """Initial parameters of one of the networks above. No reference.

    Args:
      module: takes a TokenBatch.
      key: PRNG key.

    Returns:
      The bare "params" tree, computed in one compiled program.

    >>> config = TransformerConfig(
    ...     vocab_size=8, d_model=4, n_layers=1, n_heads=1, n_kv_heads=1, d_head=4,
    ...     d_ff=8, max_length=8)
    >>> sorted(init_params(ActorCritic(config), key=jax.random.key(0)))
    ['lm_head', 'trunk', 'value_head']
    """
    token = jnp.ones((1, 1), jnp.int32)
    batch = TokenBatch(token, segment_ids=token, positions=token * 0, mask=token > 0)
    return jax.jit(module.init)(key, batch)["params"]


def init_head(module: nn.Module, name: str, *, key: Array) -> Params:
    """`init_params`, but only of one head: no trunk is made for it. No reference.

    Args:
      module: a network above.
      name: of its head: "lm_head", "value_head" or "score_head".
      key: PRNG key; the same one gives the same head as in ``init_params``.

    >>> config = TransformerConfig(
    ...     vocab_size=8, d_model=4, n_layers=1, n_heads=1, n_kv_heads=1, d_head=4,
    ...     d_ff=8, max_length=8)
    >>> init_head(ActorCritic(config), "value_head", key=jax.random.key(0))["bias"]
    Array([0.], dtype=float32)
    """
    return jax.jit(lambda key: init_params(module, key=key)[name])(key)


def num_params(config: TransformerConfig) -> int:
    """Parameters of a ``CausalLM``, counted without making them. No reference.

    >>> num_params(TransformerConfig(
    ...     vocab_size=5, d_model=2, n_layers=1, n_heads=1, n_kv_heads=1, d_head=2,
    ...     d_ff=3, max_length=8, tie_embeddings=True))
    50
    """
    shapes = jax.eval_shape(partial(init_params, CausalLM(config), key=_NO_KEY))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def policy_apply(config: TransformerConfig) -> ApplyFn:
    """The policy without a critic: params of a ``CausalLM``. No reference."""
    return _module_apply(CausalLM(config))


def actor_critic_apply(config: TransformerConfig) -> ApplyFn:
    """The policy with a value head on its trunk: params of an ``ActorCritic``.

    No reference.
    """
    return _module_apply(ActorCritic(config))


def separate_critic_apply(
    config: TransformerConfig, critic_config: TransformerConfig
) -> ApplyFn:
    """The policy with a critic of its own, which may start from the reward model.

    Stiennon et al. 2020, arXiv:2009.01325. Params are {"policy": those of ``CausalLM``,
    "critic": those of ``ScoreModel``}. Sampling needs no values: the critic reads only
    whole batches, and with a cache ``values`` is None.
    """
    policy, critic = policy_apply(config), score_apply(critic_config)

    def apply_fn(
        params: Params,
        batch: TokenBatch,
        *,
        cache: Any = None,
        cache_size: int | None = None,
    ) -> ModelOutput:
        output = policy(params["policy"], batch, cache=cache, cache_size=cache_size)
        if output.cache is not None:
            return output
        return output._replace(values=critic(params["critic"], batch)[:, :, 0])

    return apply_fn


def score_apply(config: TransformerConfig, *, num_outputs: int = 1) -> ScoreFn:
    """A reward network: params of a ``ScoreModel``. No reference."""
    module = ScoreModel(config, num_outputs)

    def score_fn(
        params: Params, batch: TokenBatch, *, at: Array | None = None
    ) -> Array:
        scores: Any = module.apply({"params": params}, batch, at=at)
        return scores

    return score_fn


def score_params_from_policy(policy_params: Params, score_params: Params) -> Params:
    """Reward-model parameters whose trunk is that of a policy. No reference.

    Args:
      policy_params: params of a ``CausalLM`` or ``ActorCritic``.
      score_params: params of a ``ScoreModel`` on the same config.

    Returns:
      score_params with the policy's trunk (not copied).

    Raises:
      UserError: a leaf of the two trunks differs in name or shape.

    >>> policy, score = {"trunk": {"w": jnp.ones(2)}}, {"trunk": {"w": jnp.zeros(2)}}
    >>> score_params_from_policy(policy, score | {"score_head": {}})["trunk"]["w"]
    Array([1., 1.], dtype=float32)
    """
    shapes = lambda params: {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype.name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["trunk"])
    }
    policy, score = shapes(policy_params), shapes(score_params)
    for name in sorted(policy.keys() | score.keys()):
        if name not in policy or name not in score or policy[name] != score[name]:
            there = [tree[name] if name in tree else "none" for tree in (policy, score)]
            raise UserError(
                f"trunk{name} is {there[0]} in the policy and {there[1]} in the score "
                "model: give both the same config"
            )
    return {**score_params, "trunk": policy_params["trunk"]}


_NO_KEY = jax.eval_shape(lambda: jax.random.key(0))
_dot_to_float32 = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def _module_apply(module: nn.Module) -> ApplyFn:
    """``module.apply`` on bare params."""

    def apply_fn(
        params: Params,
        batch: TokenBatch,
        *,
        cache: Any = None,
        cache_size: int | None = None,
    ) -> ModelOutput:
        output: Any = module.apply(
            {"params": params}, batch, cache=cache, cache_size=cache_size
        )
        return output

    return apply_fn
