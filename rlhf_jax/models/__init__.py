"""Flax modules: the only code that owns parameters."""

from rlhf_jax.models.cache import KVCache
from rlhf_jax.models.config import CacheDType, DType, RopeConfig, TransformerConfig
from rlhf_jax.models.heads import (
    ActorCritic,
    CausalLM,
    ScoreHead,
    ScoreModel,
    ValueHead,
    actor_critic_apply,
    init_head,
    init_params,
    num_params,
    policy_apply,
    score_apply,
    score_params_from_policy,
    separate_critic_apply,
)
from rlhf_jax.models.transformer import Transformer, decode_layout, unstack_layers

__all__ = [
    "ActorCritic",
    "CacheDType",
    "CausalLM",
    "DType",
    "KVCache",
    "RopeConfig",
    "ScoreHead",
    "ScoreModel",
    "Transformer",
    "TransformerConfig",
    "ValueHead",
    "actor_critic_apply",
    "decode_layout",
    "init_head",
    "init_params",
    "num_params",
    "policy_apply",
    "score_apply",
    "score_params_from_policy",
    "separate_critic_apply",
    "unstack_layers",
]
