"""Flax modules: the only code that owns parameters."""

from rlhf_jax.models.config import TransformerConfig, num_params
from rlhf_jax.models.heads import (
    ActorCritic,
    CausalLM,
    ScoreHead,
    ScoreModel,
    ValueHead,
    actor_critic_apply,
    init_params,
    policy_apply,
    score_apply,
    score_params_from_policy,
    separate_critic_apply,
)
from rlhf_jax.models.transformer import KVCache, Transformer

__all__ = [
    "ActorCritic",
    "CausalLM",
    "KVCache",
    "ScoreHead",
    "ScoreModel",
    "Transformer",
    "TransformerConfig",
    "ValueHead",
    "actor_critic_apply",
    "init_params",
    "num_params",
    "policy_apply",
    "score_apply",
    "score_params_from_policy",
    "separate_critic_apply",
]
