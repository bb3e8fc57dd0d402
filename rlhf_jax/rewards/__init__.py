"""r(x, y): learned models and Python functions."""

from rlhf_jax.rewards.columns import with_columns
from rlhf_jax.rewards.combine import CombinedRewards, combine_rewards
from rlhf_jax.rewards.functions import (
    RewardFunction,
    call_reward_function,
    load_reward_function,
)
from rlhf_jax.rewards.learned import (
    ScoreKind,
    ensemble_scores,
    learned_reward,
    normalize_scores,
    sequence_scores,
)
from rlhf_jax.rewards.personal import (
    UserPrior,
    fit_user,
    user_prior,
    user_reward_params,
)
from rlhf_jax.rewards.shaping import (
    format_reward,
    length_reward,
    overlong_reward,
    repetition_reward,
)
from rlhf_jax.rewards.verifiable import (
    final_number,
    final_number_reward,
    math_reward,
)

__all__ = [
    "CombinedRewards",
    "RewardFunction",
    "ScoreKind",
    "UserPrior",
    "call_reward_function",
    "combine_rewards",
    "ensemble_scores",
    "final_number",
    "final_number_reward",
    "fit_user",
    "format_reward",
    "learned_reward",
    "length_reward",
    "load_reward_function",
    "math_reward",
    "normalize_scores",
    "overlong_reward",
    "repetition_reward",
    "sequence_scores",
    "user_prior",
    "user_reward_params",
    "with_columns",
]
