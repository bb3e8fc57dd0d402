"""Decoders by name, from numbers that their checkpoints' config.json has."""

import dataclasses
from pathlib import Path

import huggingface_hub

from rlhf_jax.errors import UserError
from rlhf_jax.models import RopeConfig, TransformerConfig
from rlhf_jax.models.hf.files import read_object
from rlhf_jax.models.hf.load import read_transformer_config

_LLAMA = TransformerConfig(
    vocab_size=128_256,
    d_model=4_096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    d_ff=14_336,
    max_length=131_072,
    rope=RopeConfig(500_000.0, kind="llama3", factor=8.0, original_length=8_192),
)
DECODERS = {
    "Qwen3-0.6B": TransformerConfig(
        vocab_size=151_936,
        d_model=1_024,
        n_layers=28,
        n_heads=16,
        n_kv_heads=8,
        d_head=128,
        d_ff=3_072,
        max_length=40_960,
        norm_eps=1e-6,
        rope=RopeConfig(1_000_000.0),
        qk_norm="head",
        tie_embeddings=True,
    ),
    "Llama-3.2-1B": dataclasses.replace(
        _LLAMA,
        d_model=2_048,
        n_layers=16,
        d_head=64,
        d_ff=8_192,
        tie_embeddings=True,
        rope=dataclasses.replace(_LLAMA.rope, factor=32.0),
    ),
    "Llama-3.1-8B": _LLAMA,
    "Llama-3.1-70B": dataclasses.replace(
        _LLAMA, d_model=8_192, n_layers=80, n_heads=64, d_ff=28_672
    ),
}


def find_decoder(name: str) -> TransformerConfig:
    """A decoder of DECODERS, or of a checkpoint of transformers.

    Args:
      name: of DECODERS; or a folder with a config.json, or a hub id, of which nothing
        else is downloaded.

    Raises:
      UserError: there is no such checkpoint, or it is of no known family.

    >>> find_decoder("Llama-3.1-8B").n_layers
    32
    """
    if name in DECODERS:
        return DECODERS[name]
    return read_transformer_config(read_object(_config_file(name)))[1]


def _config_file(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name) / "config.json"
    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    except Exception as error:  # of the hub, the network, the proxy, the disk
        raise UserError(
            f"--model {name}: none of {', '.join(DECODERS)}, no such folder, and no "
            f"config.json on the hub or in its cache ({type(error).__name__})"
        ) from error
