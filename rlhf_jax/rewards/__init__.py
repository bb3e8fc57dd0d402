"""r(x, y): learned models and Python functions."""

from rlhf_jax.rewards.functions import (
    RewardFunction,
    call_reward_function,
    load_reward_function,
)
from rlhf_jax.rewards.learned import (
    ScoreKind,
    learned_reward,
    normalize_scores,
    sequence_scores,
)

__all__ = [
    "RewardFunction",
    "ScoreKind",
    "call_reward_function",
    "learned_reward",
    "load_reward_function",
    "normalize_scores",
    "sequence_scores",
]
