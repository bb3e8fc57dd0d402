"""Did it work, or was the reward hacked?"""

from rlhf_jax.evaluation.overoptimization import (
    OveroptimizationFit,
    fit_overoptimization,
)

__all__ = ["OveroptimizationFit", "fit_overoptimization"]
