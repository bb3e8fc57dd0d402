"""Equations: arrays in, arrays out. No parameters, no models, no configs, no I/O."""

from rlhf_jax.ops.advantages import (
    gae_advantages,
    group_advantages,
    leave_one_out_advantages,
)
from rlhf_jax.ops.fused_logprobs import fused_token_logprobs
from rlhf_jax.ops.kl import adaptive_kl_update, kl_estimate, kl_penalized_rewards
from rlhf_jax.ops.logits import (
    min_p_mask,
    scale_by_temperature,
    top_k_mask,
    top_p_mask,
)
from rlhf_jax.ops.logprobs import align_to_tokens, token_entropy, token_logprobs
from rlhf_jax.ops.policy_loss import ppo_loss
from rlhf_jax.ops.preference_loss import implicit_reward, preference_loss
from rlhf_jax.ops.reward_loss import (
    binary_reward,
    binary_reward_loss,
    choice_reward_loss,
    pairwise_accuracy,
    pairwise_reward_loss,
    ranking_reward_loss,
)
from rlhf_jax.ops.supervised_loss import supervised_loss
from rlhf_jax.ops.value_loss import explained_variance, value_loss

__all__ = [
    "adaptive_kl_update",
    "align_to_tokens",
    "binary_reward",
    "binary_reward_loss",
    "choice_reward_loss",
    "explained_variance",
    "fused_token_logprobs",
    "gae_advantages",
    "group_advantages",
    "implicit_reward",
    "kl_estimate",
    "kl_penalized_rewards",
    "leave_one_out_advantages",
    "min_p_mask",
    "pairwise_accuracy",
    "pairwise_reward_loss",
    "ppo_loss",
    "preference_loss",
    "ranking_reward_loss",
    "scale_by_temperature",
    "supervised_loss",
    "token_entropy",
    "token_logprobs",
    "top_k_mask",
    "top_p_mask",
    "value_loss",
]
