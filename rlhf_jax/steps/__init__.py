"""Steps: (TrainState, batch, key) -> (TrainState, metrics)."""

from rlhf_jax.steps.config import (
    PPO_PRESETS,
    REWARD_PRESETS,
    KLConfig,
    PPOConfig,
    PPOPreset,
    RewardPreset,
)
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.group import (
    GroupExperience,
    group_experience_step,
    group_step,
)
from rlhf_jax.steps.group_config import GROUP_PRESETS, GroupConfig
from rlhf_jax.steps.iteration import RewardFn, group_iteration, ppo_iteration
from rlhf_jax.steps.policy import policy_step, ppo_update
from rlhf_jax.steps.preference import (
    PreferenceConfig,
    preference_step,
    reference_logps,
)
from rlhf_jax.steps.reward import (
    binary_terms,
    choice_terms,
    pairwise_terms,
    ranking_terms,
    reward_eval,
    reward_step,
)
from rlhf_jax.steps.rollout import (
    episode_kl,
    experience_step,
    sample_step,
    shape_scores,
)
from rlhf_jax.steps.sft import sft_eval, sft_step
from rlhf_jax.steps.state import (
    PolicyState,
    TrainState,
    apply_loss,
    create_policy_state,
    create_state,
)

__all__ = [
    "GROUP_PRESETS",
    "PPO_PRESETS",
    "REWARD_PRESETS",
    "GroupConfig",
    "GroupExperience",
    "KLConfig",
    "PPOConfig",
    "PPOPreset",
    "PolicyState",
    "PreferenceConfig",
    "RewardFn",
    "RewardPreset",
    "TrainState",
    "apply_loss",
    "binary_terms",
    "choice_terms",
    "create_policy_state",
    "create_state",
    "episode_kl",
    "experience_step",
    "group_experience_step",
    "group_iteration",
    "group_step",
    "pairwise_terms",
    "policy_forward",
    "policy_step",
    "ppo_iteration",
    "ppo_update",
    "preference_step",
    "ranking_terms",
    "reference_logps",
    "reward_eval",
    "reward_step",
    "sample_step",
    "sft_eval",
    "sft_step",
    "shape_scores",
]
