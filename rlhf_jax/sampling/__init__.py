"""Prompts to rollouts, for any policy that is an ``ApplyFn``."""

from rlhf_jax.sampling.generate import SamplingConfig, generate

__all__ = ["SamplingConfig", "generate"]
