"""A page on which people rank or rate completions; docs/labelling.md tells of it."""

from rlhf_jax.feedback.page.config import ServeConfig
from rlhf_jax.feedback.page.export import export
from rlhf_jax.feedback.page.rewards import PageRewards
from rlhf_jax.feedback.page.serve import serve

__all__ = ["PageRewards", "ServeConfig", "export", "serve"]
