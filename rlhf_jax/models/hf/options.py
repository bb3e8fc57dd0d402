"""transformers' config.json to `TransformerConfig`: every option honoured, or refused.

transformers reads the file, fills in its defaults and brings old spellings to the new
one; here its words become ours. An option that no reader knows, set to anything but
"off", is refused by name: nothing is approximated in silence.
"""

import math
from collections.abc import Mapping
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import RopeConfig

Read = dict[str, Any]  # fields of TransformerConfig

# What has no influence on the numbers of a forward pass, and dropout: both networks of
# a probability ratio must be the same function, so that RLHF runs without it.
BOOKKEEPING = frozenset(
    "_name_or_path architectures model_type dtype torch_dtype transformers_version "
    "use_cache initializer_range bos_token_id eos_token_id pad_token_id sep_token_id "
    "unk_token_id id2label label2id num_labels problem_type output_attentions "
    "output_hidden_states output_router_logits router_aux_loss_coef return_dict "
    "chunk_size_feed_forward task_specific_params gradient_checkpointing "
    "cache_implementation pretraining_tp attention_dropout hidden_dropout attn_pdrop "
    "resid_pdrop embd_pdrop classifier_dropout summary_type summary_use_proj "
    "summary_activation summary_proj_to_labels summary_first_dropout is_decoder "
    "is_encoder_decoder rlhf_jax_score_offset".split()
)
COMMON = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps "
    "tie_word_embeddings rope_parameters rope_scaling rope_theta rotary_emb_base "
    "rotary_pct partial_rotary_factor original_max_position_embeddings "
    "rope_local_base_freq sliding_window_pattern _sliding_window_pattern".split()
)
_OFF = (None, False, [], {}, "")

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def check_options(raw: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuses options of a config.json that are on and that nobody reads."""
    for name, value in raw.items():
        if name not in known | COMMON | BOOKKEEPING and value not in _OFF:
            raise UserError(
                f"config.json: {name} = {value!r} is not supported for "
                f"{raw.get('model_type')!r}; use a checkpoint without it"
            )


def expect(config: Any, name: str, *allowed: Any) -> None:
    """Refuses any value of an option but the ones that are supported."""
    value = getattr(config, name, allowed[0])
    if value not in allowed:
        raise UserError(
            f"config.json: {name} = {value!r} is not supported for "
            f"{config.model_type!r}; expected {' or '.join(map(repr, allowed))}"
        )


def read_llama(config: Any) -> Read:
    """Llama, Mistral, Phi-3, and what all but GPT-2 and GPT-NeoX have in common."""
    d_head = getattr(config, "head_dim", None)
    bias = getattr(config, "attention_bias", False)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads or config.num_attention_heads,
        "d_head": d_head or config.hidden_size // config.num_attention_heads,
        "d_ff": config.intermediate_size,
        "max_length": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "rope": read_rope(config, config.rope_parameters),
        "tie_embeddings": config.tie_word_embeddings,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": getattr(config, "mlp_bias", False),
        "activation": _activation(getattr(config, "hidden_act", "silu")),
        **_windows(config),
    }


def read_qwen2(config: Any) -> Read:
    """Biases on q, k and v, none on o."""
    return read_llama(config) | {"qkv_bias": True}


def read_qwen3(config: Any) -> Read:
    return read_llama(config) | {"qk_norm": "head"}


def read_olmo2(config: Any) -> Read:
    """Norms after attention and MLP only; queries normalised over all heads."""
    return read_llama(config) | {
        "pre_norm": False,
        "post_norm": True,
        "qk_norm": "all",
    }


def read_mixtral(config: Any) -> Read:
    expect(config, "router_jitter_noise", 0.0)
    return read_llama(config) | {
        "n_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
    }


def read_qwen3_moe(config: Any) -> Read:
    expect(config, "mlp_only_layers", [])
    expect(config, "decoder_sparse_step", 1)
    return read_qwen3(config) | {
        "d_ff": config.moe_intermediate_size,
        "n_experts": config.num_experts,
        "experts_per_token": config.num_experts_per_tok,
        "normalize_experts": config.norm_topk_prob,
    }


def read_gemma(config: Any) -> Read:
    """Gemma 2 with soft-caps; Gemma 3 with QK-norm and two bases of rotary positions.

    transformers takes no notice of Gemma 3's ``attn_logit_softcapping``; so that it
    cannot mean one thing there and another here, it is refused.
    """
    expect(config, "use_bidirectional_attention", None, False)
    expect(config, "sliding_window_size", config.sliding_window)
    third = config.model_type == "gemma3_text"
    if third:
        expect(config, "attn_logit_softcapping", None)
        config = _GlobalRope(config)
    return read_llama(config) | {
        "activation": _activation(config.hidden_activation),
        "scale_embeddings": True,
        "norm": "centered_rms",
        "post_norm": True,
        "qk_norm": "head" if third else "none",
        "attn_scale": config.query_pre_attn_scalar**-0.5,
        "attn_softcap": config.attn_logit_softcapping,
        "logit_softcap": config.final_logit_softcapping,
    }


def read_gpt_neox(config: Any) -> Read:
    d_head = config.hidden_size // config.num_attention_heads
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_attention_heads,
        "d_head": d_head,
        "d_ff": config.intermediate_size,
        "max_length": config.max_position_embeddings,
        "norm": "layer",
        "norm_eps": config.layer_norm_eps,
        "rope": read_rope(config, config.rope_parameters),
        "tie_embeddings": config.tie_word_embeddings,
        "parallel_residual": config.use_parallel_residual,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "gated_mlp": False,
        "mlp_bias": True,
        "activation": _activation(config.hidden_act),
    }


def read_gpt2(config: Any) -> Read:
    """``reorder_and_upcast_attn`` concerns half precision only: ours is float32."""
    expect(config, "scale_attn_by_inverse_layer_idx", False)
    expect(config, "add_cross_attention", False)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.n_embd,
        "n_layers": config.n_layer,
        "n_heads": config.n_head,
        "n_kv_heads": config.n_head,
        "d_head": config.n_embd // config.n_head,
        "d_ff": config.n_inner or 4 * config.n_embd,
        "max_length": config.n_positions,
        "positions": "learned",
        "norm": "layer",
        "norm_eps": config.layer_norm_epsilon,
        "tie_embeddings": config.tie_word_embeddings,
        "qkv_bias": True,
        "o_bias": True,
        "gated_mlp": False,
        "mlp_bias": True,
        "attn_scale": None if config.scale_attn_weights else 1.0,
        "activation": _activation(config.activation_function),
    }


def read_rope(config: Any, rope: Mapping[str, Any]) -> RopeConfig:
    """Rotary positions, with the numbers that transformers infers filled in."""
    kinds = ("default", "linear", "dynamic", "llama3", "yarn")
    kind = rope.get("rope_type")
    if kind is None:
        raise UserError(
            f"config.json: rope_parameters = {dict(rope)!r} is not supported for "
            f"{config.model_type!r}; expected one set, with its rope_type"
        )
    if kind not in kinds:
        raise UserError(
            f"config.json: rope_type = {kind!r} is not supported; expected one of "
            f"{', '.join(kinds)}"
        )
    d_head = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    dims = int(d_head * (rope.get("partial_rotary_factor") or 1.0))
    read: Read = {
        "theta": float(rope["rope_theta"]),
        "dims": None if dims == d_head else dims,
        "kind": kind,
        "local_theta": rope.get("local_theta"),
    }
    if kind != "default":
        read |= _stretch(config, rope)
    return RopeConfig(**read)


def _stretch(config: Any, rope: Mapping[str, Any]) -> Read:
    """What each kind of stretching needs."""
    length = config.max_position_embeddings
    if rope["rope_type"] in ("llama3", "yarn"):
        length = rope.get("original_max_position_embeddings") or length
    factor = rope.get("factor") or config.max_position_embeddings / length
    read: Read = {"factor": float(factor), "original_length": length}
    numbers = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow"),
    }
    for name in numbers.get(rope["rope_type"], ()):
        if rope.get(name) is not None:
            read[name] = float(rope[name])
    if rope["rope_type"] == "yarn":
        read["truncate"] = rope.get("truncate", True)
        read["attention_factor"] = _attention_factor(rope, factor)
    return read


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Eq. 22 of Peng et al. 2023, arXiv:2309.00071, or by DeepSeek's ``mscale``."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    grow = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return grow(rope["mscale"]) / grow(rope["mscale_all_dim"])
    return grow(1.0)


class _GlobalRope:
    """Gemma 3's config with the global layers' rotary positions as the only ones."""

    def __init__(self, config: Any):
        near = config.rope_parameters["sliding_attention"]
        if near["rope_type"] != "default":
            raise UserError(
                f"config.json: rope_type = {near['rope_type']!r} of the sliding layers "
                "is not supported; expected 'default'"
            )
        far = config.rope_parameters["full_attention"]
        self.rope_parameters = far | {"local_theta": float(near["rope_theta"])}
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise UserError(
            f"config.json: the activation {name!r} is not supported; expected one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _windows(config: Any) -> Read:
    """Which layers have the window: those that layer_types names, or all of them."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return {}
    types = getattr(config, "layer_types", None)
    types = types or ["sliding_attention"] * config.num_hidden_layers
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise UserError(
            f"config.json: layer_types has {', '.join(sorted(unknown))}; expected "
            "sliding_attention or full_attention"
        )
    local = (i for i, kind in enumerate(types) if kind == "sliding_attention")
    return {"window": window, "local_layers": tuple(local)}
