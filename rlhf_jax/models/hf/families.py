"""The families of decoders: one name table and one reader of options each.

A table maps the modules of transformers to ours, relative to the parameters' tree;
``{l}`` is the layer, ``{e}`` the expert. Several of ours against one of theirs are a
fused projection, in that order. Entries that a config does not have (a bias, a norm, an
untied head) are simply not in the tree, and not used.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlhf_jax.models.hf.options import (
    Read,
    read_gemma,
    read_gpt2,
    read_gpt_neox,
    read_llama,
    read_mixtral,
    read_olmo2,
    read_qwen2,
    read_qwen3,
    read_qwen3_moe,
)

Names = Mapping[str, tuple[str, ...]]
_BLOCK = "trunk/blocks/"


class Family(NamedTuple):
    """One ``model_type`` of transformers."""

    architecture: str  # the causal model's class; the reward model's is derived
    names: Names
    read: Callable[[Any], Read]  # transformers' config -> fields of TransformerConfig
    options: frozenset[str]  # what ``read`` looks at, besides the common ones
    transposed: bool = True  # weights are [out, in]; GPT-2's are [in, out]
    interleaved: bool = False  # fused heads alternate q, k, v instead of following
    # The tables do not need a trunk's prefix: GPT-2's own files have none.
    prefix: str = "model."


def _names(layer: str, outside: dict[str, str], inside: dict[str, str]) -> Names:
    """A table from modules outside the layers and those of one layer."""
    split = lambda ours, where: tuple(where + name for name in ours.split())
    table = {theirs: split(ours, "") for theirs, ours in outside.items()}
    inner = {f"{layer}.{theirs}": split(o, _BLOCK) for theirs, o in inside.items()}
    return table | inner | {"score": ("score_head",)}


_OUTSIDE = {
    "model.embed_tokens": "trunk/embed",
    "model.norm": "trunk/final_norm",
    "lm_head": "lm_head",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
_NORMS_AFTER = {
    "post_attention_layernorm": "attn_post_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_NORMS_BOTH = _NORMS_AFTER | {
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "mlp_norm",
}
_ATTENTION = {
    f"self_attn.{name}": f"attn/{name}"
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
}
_MLP = {f"mlp.{name}": f"mlp/{name}" for name in ("gate_proj", "up_proj", "down_proj")}
_MIXTRAL = {
    "block_sparse_moe.gate": "mlp/router",
    "block_sparse_moe.experts.{e}.w1": "mlp/gate_proj",
    "block_sparse_moe.experts.{e}.w3": "mlp/up_proj",
    "block_sparse_moe.experts.{e}.w2": "mlp/down_proj",
}
_EXPERTS = {"mlp.gate": "mlp/router"} | {
    f"mlp.experts.{{e}}.{name}": f"mlp/{name}"
    for name in ("gate_proj", "up_proj", "down_proj")
}
_FUSED = {
    "self_attn.qkv_proj": "attn/q_proj attn/k_proj attn/v_proj",
    "self_attn.o_proj": "attn/o_proj",
    "mlp.gate_up_proj": "mlp/gate_proj mlp/up_proj",
    "mlp.down_proj": "mlp/down_proj",
}
_LAYER = "model.layers.{l}"
_WINDOW = frozenset({"sliding_window"})
_QWEN_MOE = _WINDOW | {"use_sliding_window", "max_window_layers"}
_QWEN = _QWEN_MOE | {"layer_types"}
_GEMMA = _WINDOW | {
    "layer_types",
    "sliding_window_size",
    "hidden_activation",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "attention_bias",
    "use_bidirectional_attention",
}
_MOE = frozenset({"num_experts_per_tok", "router_jitter_noise"})


def _llama_like(
    architecture: str,
    read: Callable[[Any], Read],
    options: frozenset[str],
    *parts: dict[str, str],
) -> Family:
    inside = {theirs: ours for part in parts for theirs, ours in part.items()}
    return Family(architecture, _names(_LAYER, _OUTSIDE, inside), read, options)


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        _names(
            "transformer.h.{l}",
            {
                "transformer.wte": "trunk/embed",
                "transformer.wpe": "trunk/pos_embed",
                "transformer.ln_f": "trunk/final_norm",
                "lm_head": "lm_head",
            },
            {
                "ln_1": "attn_norm",
                "attn.c_attn": "attn/q_proj attn/k_proj attn/v_proj",
                "attn.c_proj": "attn/o_proj",
                "ln_2": "mlp_norm",
                "mlp.c_fc": "mlp/up_proj",
                "mlp.c_proj": "mlp/down_proj",
            },
        ),
        read_gpt2,
        frozenset(
            "n_positions n_ctx n_embd n_layer n_head n_inner activation_function "
            "layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx "
            "reorder_and_upcast_attn add_cross_attention".split()
        ),
        transposed=False,
        prefix="transformer.",
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        _names(
            "gpt_neox.layers.{l}",
            {
                "gpt_neox.embed_in": "trunk/embed",
                "gpt_neox.final_layer_norm": "trunk/final_norm",
                "embed_out": "lm_head",
            },
            _NORMS
            | {
                "attention.query_key_value": "attn/q_proj attn/k_proj attn/v_proj",
                "attention.dense": "attn/o_proj",
                "mlp.dense_h_to_4h": "mlp/up_proj",
                "mlp.dense_4h_to_h": "mlp/down_proj",
            },
        ),
        read_gpt_neox,
        frozenset({"layer_norm_eps", "use_parallel_residual", "attention_bias"}),
        interleaved=True,
        prefix="gpt_neox.",
    ),
    "llama": _llama_like(
        "LlamaForCausalLM",
        read_llama,
        frozenset({"attention_bias", "mlp_bias", "pretraining_tp"}),
        _NORMS,
        _ATTENTION,
        _MLP,
    ),
    "mistral": _llama_like(
        "MistralForCausalLM", read_llama, _WINDOW, _NORMS, _ATTENTION, _MLP
    ),
    "qwen2": _llama_like(
        "Qwen2ForCausalLM", read_qwen2, _QWEN, _NORMS, _ATTENTION, _MLP
    ),
    "qwen3": _llama_like(
        "Qwen3ForCausalLM",
        read_qwen3,
        _QWEN | {"attention_bias"},
        _NORMS,
        _ATTENTION,
        _MLP,
    ),
    "gemma2": _llama_like(
        "Gemma2ForCausalLM", read_gemma, _GEMMA, _NORMS_BOTH, _ATTENTION, _MLP
    ),
    "gemma3_text": _llama_like(
        "Gemma3ForCausalLM", read_gemma, _GEMMA, _NORMS_BOTH, _ATTENTION, _MLP
    ),
    "olmo2": _llama_like(
        "Olmo2ForCausalLM",
        read_olmo2,
        frozenset({"attention_bias"}),
        _NORMS_AFTER,
        _ATTENTION,
        _MLP,
    ),
    "phi3": _llama_like("Phi3ForCausalLM", read_llama, _WINDOW, _NORMS, _FUSED),
    "mixtral": _llama_like(
        "MixtralForCausalLM",
        read_mixtral,
        _WINDOW | _MOE | {"num_local_experts"},
        _NORMS,
        _ATTENTION,
        _MIXTRAL,
    ),
    "qwen3_moe": _llama_like(
        "Qwen3MoeForCausalLM",
        read_qwen3_moe,
        _QWEN_MOE
        | _MOE
        | {
            "attention_bias",
            "num_experts",
            "num_local_experts",
            "moe_intermediate_size",
            "norm_topk_prob",
            "decoder_sparse_step",
            "mlp_only_layers",
        },
        _NORMS,
        _ATTENTION,
        _EXPERTS,
    ),
}


def reward_architecture(model_type: str) -> str:
    """transformers' sequence classifier of a family."""
    if model_type == "gemma3_text":
        return "Gemma3TextForSequenceClassification"
    causal = FAMILIES[model_type].architecture
    return causal.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + (
        "ForSequenceClassification"
    )
