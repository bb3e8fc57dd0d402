"""Did it work? Expected reward, comparisons, ratings, and reward models themselves."""

from rlhf_jax.evaluation.calibration import (
    Calibration,
    CalibrationBin,
    MarginBin,
    accuracy_by_margin,
    calibration,
    pair_accuracy,
    pair_calibration,
)
from rlhf_jax.evaluation.enumeration import Response, enumerate_responses
from rlhf_jax.evaluation.expected_reward import (
    ExactReward,
    ExpectedReward,
    exact_expected_reward,
    expected_reward,
    predicted_standard_error,
)
from rlhf_jax.evaluation.intervals import (
    bootstrap_interval,
    mean_interval,
    share_interval,
)
from rlhf_jax.evaluation.overoptimization import (
    OveroptimizationFit,
    fit_overoptimization,
)
from rlhf_jax.evaluation.pass_at_k import pass_at_k
from rlhf_jax.evaluation.ratings import Ratings, bradley_terry, elo_ratings
from rlhf_jax.evaluation.reward_quality import (
    EDITS,
    GoldAgreement,
    Robustness,
    correlation,
    edit_robustness,
    gold_agreement,
)
from rlhf_jax.evaluation.win_rate import (
    LengthControlled,
    WinRate,
    length_controlled_win_rate,
    reward_difference,
    reward_outcomes,
    win_rate,
)

__all__ = [
    "Calibration",
    "CalibrationBin",
    "EDITS",
    "ExactReward",
    "ExpectedReward",
    "GoldAgreement",
    "LengthControlled",
    "MarginBin",
    "OveroptimizationFit",
    "Ratings",
    "Response",
    "Robustness",
    "WinRate",
    "accuracy_by_margin",
    "bootstrap_interval",
    "bradley_terry",
    "calibration",
    "correlation",
    "edit_robustness",
    "elo_ratings",
    "enumerate_responses",
    "exact_expected_reward",
    "expected_reward",
    "fit_overoptimization",
    "gold_agreement",
    "length_controlled_win_rate",
    "mean_interval",
    "pair_accuracy",
    "pair_calibration",
    "pass_at_k",
    "predicted_standard_error",
    "reward_difference",
    "reward_outcomes",
    "share_interval",
    "win_rate",
]
