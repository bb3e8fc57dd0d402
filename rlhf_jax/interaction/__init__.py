"""Responses in which an environment has a part: tools, retrieval, other speakers."""

from rlhf_jax.interaction.config import InteractionConfig, context_width
from rlhf_jax.interaction.environment import Environment, ask
from rlhf_jax.interaction.environments import calculator, call_at_end, retriever
from rlhf_jax.interaction.interact import Sampler, interact, spoken

__all__ = [
    "Environment",
    "InteractionConfig",
    "Sampler",
    "ask",
    "calculator",
    "call_at_end",
    "context_width",
    "interact",
    "retriever",
    "spoken",
]
