"""Checkpoints of transformers, in and out: any decoder of ``FAMILIES``."""

from rlhf_jax.models.hf.adapters import load_adapters, save_adapters
from rlhf_jax.models.hf.card import ModelCard
from rlhf_jax.models.hf.families import FAMILIES
from rlhf_jax.models.hf.files import resolve
from rlhf_jax.models.hf.load import Kind, Pretrained, label_names, load_pretrained
from rlhf_jax.models.hf.save import llama_config, save_pretrained

__all__ = [
    "FAMILIES",
    "Kind",
    "ModelCard",
    "Pretrained",
    "label_names",
    "llama_config",
    "load_adapters",
    "load_pretrained",
    "resolve",
    "save_adapters",
    "save_pretrained",
]
