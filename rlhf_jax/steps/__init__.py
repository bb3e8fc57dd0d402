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
from rlhf_jax.steps.policy import policy_step, ppo_update
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
    "PPO_PRESETS",
    "REWARD_PRESETS",
    "KLConfig",
    "PPOConfig",
    "PPOPreset",
    "PolicyState",
    "RewardPreset",
    "TrainState",
    "apply_loss",
    "binary_terms",
    "choice_terms",
    "create_policy_state",
    "create_state",
    "episode_kl",
    "experience_step",
    "pairwise_terms",
    "policy_forward",
    "policy_step",
    "ppo_update",
    "ranking_terms",
    "reward_eval",
    "reward_step",
    "sample_step",
    "sft_eval",
    "sft_step",
    "shape_scores",
]
