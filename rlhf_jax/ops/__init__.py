"""Equations: arrays in, arrays out. No parameters, no models, no configs, no I/O."""

from rlhf_jax.ops.advantages import (
    discounted_returns,
    gae_advantages,
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
    remax_advantages,
)
from rlhf_jax.ops.best_of_n import best_of_n, best_of_n_kl, expected_best_of
from rlhf_jax.ops.distillation_loss import distillation_loss
from rlhf_jax.ops.fused_logprobs import fused_token_logprobs
from rlhf_jax.ops.importance import importance_weights
from rlhf_jax.ops.kl import adaptive_kl_update, kl_estimate, kl_penalized_rewards
from rlhf_jax.ops.length_penalty import overlong_penalty
from rlhf_jax.ops.logits import (
    min_p_mask,
    scale_by_temperature,
    top_k_mask,
    top_p_mask,
)
from rlhf_jax.ops.logprobs import align_to_tokens, token_entropy, token_logprobs
from rlhf_jax.ops.online_loss import nash_md_loss, xpo_bonus
from rlhf_jax.ops.personal import personal_score
from rlhf_jax.ops.policy_loss import (
    cispo_loss,
    gspo_loss,
    policy_gradient_loss,
    ppo_loss,
    ratio_metrics,
)
from rlhf_jax.ops.preference_loss import implicit_reward, preference_loss
from rlhf_jax.ops.preference_weights import (
    length_desensitized_logps,
    on_policy_weight,
    token_log_collision,
)
from rlhf_jax.ops.process_loss import process_reward_loss
from rlhf_jax.ops.reduction import loss_weights
from rlhf_jax.ops.reference_free_loss import reference_free_loss
from rlhf_jax.ops.repetition import repetition
from rlhf_jax.ops.reward_ensemble import ensemble_disagreement, ensemble_reward
from rlhf_jax.ops.reward_loss import (
    binary_reward,
    binary_reward_loss,
    centering_loss,
    choice_reward_loss,
    label_reward,
    pairwise_accuracy,
    pairwise_reward_loss,
    ranking_reward_loss,
    regression_reward_loss,
)
from rlhf_jax.ops.supervised_loss import supervised_loss
from rlhf_jax.ops.unpaired_loss import unpaired_loss
from rlhf_jax.ops.value_loss import explained_variance, value_loss

__all__ = [
    "adaptive_kl_update",
    "align_to_tokens",
    "best_of_n",
    "best_of_n_kl",
    "binary_reward",
    "binary_reward_loss",
    "centering_loss",
    "choice_reward_loss",
    "cispo_loss",
    "discounted_returns",
    "distillation_loss",
    "ensemble_disagreement",
    "ensemble_reward",
    "expected_best_of",
    "explained_variance",
    "fused_token_logprobs",
    "gae_advantages",
    "group_advantages",
    "gspo_loss",
    "implicit_reward",
    "importance_weights",
    "informative_groups",
    "kl_estimate",
    "kl_penalized_rewards",
    "label_reward",
    "leave_one_out_advantages",
    "length_desensitized_logps",
    "loss_weights",
    "min_p_mask",
    "nash_md_loss",
    "on_policy_weight",
    "overlong_penalty",
    "pairwise_accuracy",
    "pairwise_reward_loss",
    "personal_score",
    "policy_gradient_loss",
    "ppo_loss",
    "preference_loss",
    "process_reward_loss",
    "ranking_reward_loss",
    "ratio_metrics",
    "reference_free_loss",
    "regression_reward_loss",
    "remax_advantages",
    "repetition",
    "scale_by_temperature",
    "supervised_loss",
    "token_entropy",
    "token_log_collision",
    "token_logprobs",
    "top_k_mask",
    "top_p_mask",
    "unpaired_loss",
    "value_loss",
    "xpo_bonus",
]
