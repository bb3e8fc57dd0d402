"""Parameters to checkpoints that transformers, vLLM and others load."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.hf.card import ModelCard
from rlhf_jax.models.hf.families import FAMILIES, reward_architecture
from rlhf_jax.models.hf.load import read_transformer_config
from rlhf_jax.models.hf.weights import (
    OFFSET,
    checkpoint_weights,
    flatten,
    score_offset,
    score_weight,
)
from rlhf_jax.models.hf.write_files import write_checkpoint
from rlhf_jax.types import Params

_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # ours -> transformers'
_NUMERICS = ("dtype", "cache_dtype", "param_dtype", "remat", "scan_unroll")


def save_pretrained(
    folder: str | Path,
    params: Params,
    config: TransformerConfig,
    *,
    hf_config: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stop_ids: Sequence[int] = (),
    card: ModelCard | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes a checkpoint in the Hugging Face layout, all of it or nothing.

    No reference. Safetensors in the dtype of the parameters, config.json,
    generation_config.json, the tokenizer with its chat template, and a model card.

    Args:
      folder: where; must not exist, or be empty.
      params: of a `CausalLM` or of a `ScoreModel` with one output, adapters merged.
      config: of the network.
      hf_config: the config.json that the network came with; None where it was made
        here, and is written as a Llama.
      tokenizer: None leaves its files out.
      stop_ids: tokens that end a response, for generation_config.json; none given are
        those of config.json, or the tokenizer's.
      card: what it was trained on and how; None writes no README.md.
      max_shard_size: of one file.

    Raises:
      UserError: the network is none of the families, or has parts that the layout has
        no place for (value heads, adapters, several scores).
    """
    raw = dict(llama_config(config) if hf_config is None else hf_config)
    family, read = read_transformer_config(
        raw, **{name: getattr(config, name) for name in _NUMERICS}
    )
    if read != config:
        raise UserError(
            f"{folder}: the network is not the one of its config.json: "
            f"{_difference(config, read)}"
        )
    leaves = flatten(params)
    _check_leaves(folder, leaves)
    raw.pop("torch_dtype", None)  # the old name of "dtype"
    raw |= _kind_options(raw, leaves, config, tokenizer)
    weights = checkpoint_weights(family, config, leaves)

    def read_weight(name: str) -> np.ndarray:
        weight = weights[name]
        if weight.leaves == ("score_head/kernel",):
            return weight.join([score_weight(leaves)])
        parts = [np.asarray(leaves[leaf][weight.layer]) for leaf in weight.leaves]
        return weight.join(parts)

    specs = {
        name: jax.ShapeDtypeStruct(w.shape(leaves), leaves[w.leaves[0]].dtype)
        for name, w in weights.items()
    }
    files = {"config.json": json.dumps(raw, indent=2) + "\n"}
    if "score_head/kernel" not in leaves:
        files["generation_config.json"] = generation_config(raw, stop_ids)
    if card is not None:
        files["README.md"] = card.text(raw)
    write_checkpoint(
        folder,
        specs,
        read_weight,
        files=files,
        extra=lambda half: tokenizer and tokenizer.save_pretrained(half),
        max_shard_size=max_shard_size,
    )


def _check_leaves(folder: str | Path, leaves: Mapping[str, Any]) -> None:
    odd = [n for n in leaves if "lora_" in n or n.split("/")[0] not in _PLACES]
    if odd:
        raise UserError(
            f"{folder}: {', '.join(odd[:3])} have no place in a checkpoint of "
            "transformers; merge adapters (lora.merge) and leave value heads out"
        )
    kernel = leaves.get("score_head/kernel")
    if kernel is not None and kernel.shape[1] != 1:
        raise UserError(
            f"{folder}: a reward model with {kernel.shape[1]} outputs; only one score "
            "is a sequence classifier with num_labels=1"
        )


_PLACES = ("trunk", "lm_head", "score_head")


def _kind_options(
    raw: Mapping[str, Any],
    leaves: Mapping[str, Any],
    config: TransformerConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """What config.json says besides the network: class, dtype, tokens, labels."""
    options: dict[str, Any] = {"dtype": config.param_dtype}
    options["architectures"] = [FAMILIES[raw["model_type"]].architecture]
    if tokenizer is not None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if raw.get(name) is None:
                options[name] = getattr(tokenizer, name)
    if "score_head/kernel" not in leaves:
        return options
    return options | {
        "architectures": [reward_architecture(raw["model_type"])],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        OFFSET: score_offset(leaves),
    }


def generation_config(raw: Mapping[str, Any], stop_ids: Sequence[int] = ()) -> str:
    """generation_config.json: the end tokens, padding never among them."""
    eos, pad = raw.get("eos_token_id"), raw.get("pad_token_id")
    eos = list(stop_ids) or eos
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    ends = list(dict.fromkeys(ends))
    if pad in ends and len(ends) > 1:
        ends = [end for end in ends if end != pad]
    elif pad in ends:
        pad = None  # the only end token cannot double as padding there
    values = {
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": pad,
    }
    return GenerationConfig(**values).to_json_string()


def llama_config(config: TransformerConfig) -> dict[str, Any]:
    """config.json of a network that was made here: a Llama, if it is one.

    No reference.

    What it cannot say is found by reading it back, in `save_pretrained`.
    """
    c = config
    return {
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.d_head,
        "hidden_act": _ACTIVATIONS.get(c.activation, c.activation),
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope.theta},
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": c.qkv_bias,
        "mlp_bias": c.mlp_bias,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _difference(config: TransformerConfig, read: TransformerConfig) -> str:
    for name in TransformerConfig.__dataclass_fields__:
        ours, theirs = getattr(config, name), getattr(read, name)
        if ours != theirs:
            return f"{name} is {ours!r} here, {theirs!r} there"
    return "no difference"
