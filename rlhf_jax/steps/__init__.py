"""Steps: (TrainState, batch, key) -> (TrainState, metrics)."""

from rlhf_jax.steps.best_of_n import best_of_n_step
from rlhf_jax.steps.distillation import (
    DistillationConfig,
    distillation_eval,
    distillation_step,
)
from rlhf_jax.steps.experience import experience_step, shape_scores
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.iteration import RewardFn, policy_iteration
from rlhf_jax.steps.objective import episode_kl
from rlhf_jax.steps.online import online_preference_step
from rlhf_jax.steps.online_config import ONLINE_PRESETS, OnlinePreferenceConfig
from rlhf_jax.steps.pairs import (
    PairExperience,
    pair_experience_step,
    rank_pairs,
    sample_pairs,
)
from rlhf_jax.steps.policy import policy_step
from rlhf_jax.steps.policy_config import KLConfig, PolicyConfig
from rlhf_jax.steps.preference import (
    PreferenceConfig,
    preference_step,
    reference_logps,
)
from rlhf_jax.steps.presets import (
    POLICY_PRESETS,
    PPO_PRESETS,
    REWARD_PRESETS,
    PPOPreset,
    RewardPreset,
)
from rlhf_jax.steps.reference import FollowedState, followed_state, following_step
from rlhf_jax.steps.reward import (
    binary_terms,
    choice_terms,
    pairwise_terms,
    personal_terms,
    ranking_terms,
    reward_eval,
    reward_step,
)
from rlhf_jax.steps.rollout import sample_step
from rlhf_jax.steps.sft import sft_eval, sft_step
from rlhf_jax.steps.state import (
    PolicyState,
    TrainState,
    apply_loss,
    create_policy_state,
    create_state,
)
from rlhf_jax.steps.unpaired import (
    UnpairedConfig,
    UnpairedState,
    create_unpaired_state,
    unpaired_step,
)

__all__ = [
    "ONLINE_PRESETS",
    "POLICY_PRESETS",
    "PPO_PRESETS",
    "REWARD_PRESETS",
    "DistillationConfig",
    "FollowedState",
    "KLConfig",
    "OnlinePreferenceConfig",
    "PPOPreset",
    "PairExperience",
    "PolicyConfig",
    "PolicyState",
    "PreferenceConfig",
    "RewardFn",
    "RewardPreset",
    "TrainState",
    "UnpairedConfig",
    "UnpairedState",
    "apply_loss",
    "best_of_n_step",
    "binary_terms",
    "choice_terms",
    "create_policy_state",
    "create_state",
    "create_unpaired_state",
    "distillation_eval",
    "distillation_step",
    "episode_kl",
    "experience_step",
    "followed_state",
    "following_step",
    "online_preference_step",
    "pair_experience_step",
    "pairwise_terms",
    "personal_terms",
    "policy_forward",
    "policy_iteration",
    "policy_step",
    "preference_step",
    "rank_pairs",
    "ranking_terms",
    "reference_logps",
    "reward_eval",
    "reward_step",
    "sample_pairs",
    "sample_step",
    "sft_eval",
    "sft_step",
    "shape_scores",
    "unpaired_step",
]
