"""Prompts to rollouts, for any policy that is an ``ApplyFn``."""

from rlhf_jax.sampling.config import SamplingConfig, greedy
from rlhf_jax.sampling.generate import generate
from rlhf_jax.sampling.meter import RolloutMeter
from rlhf_jax.sampling.mixture import mixture_apply

__all__ = ["RolloutMeter", "SamplingConfig", "generate", "greedy", "mixture_apply"]
