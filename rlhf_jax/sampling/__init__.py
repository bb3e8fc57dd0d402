"""Prompts to rollouts, for any policy that is an ``ApplyFn``."""

from rlhf_jax.sampling.config import SamplingConfig
from rlhf_jax.sampling.generate import generate

__all__ = ["SamplingConfig", "generate"]
