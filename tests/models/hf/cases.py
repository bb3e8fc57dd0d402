"""Every family with every option it has, small, and the torch models of them."""

import dataclasses
import itertools
from typing import Any

from rlhf_jax.models.hf import FAMILIES

_THETA = {"rope_type": "default", "rope_theta": 500.0}
_DECODER = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "rope_parameters": _THETA,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QUARTER = _THETA | {"partial_rotary_factor": 0.25}
_GEMMA = _DECODER | {
    "num_hidden_layers": 3,
    "head_dim": 8,
    "sliding_window": 5,
    "query_pre_attn_scalar": 16,
}
_TWO_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": _THETA,
}
# What all cases of a family have in common.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {
        name: value
        for name, value in _DECODER.items()
        if name not in ("num_key_value_heads", "rms_norm_eps")
    }
    | {
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-3,
        "rope_parameters": _QUARTER,
    },
    "llama": _DECODER,
    "mistral": _DECODER | {"sliding_window": None},
    "qwen2": _DECODER | {"num_hidden_layers": 3},
    "qwen3": _DECODER | {"num_hidden_layers": 3, "head_dim": 8},
    "gemma2": _GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": _GEMMA
    | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": _TWO_BASES,
    },
    "olmo2": _DECODER | {"num_key_value_heads": 4},
    "phi3": _DECODER,
    "mixtral": _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _DECODER
    | {
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A family, and what its config.json says beyond ``SMALL``."""

    family: str
    option: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Slots of a row; None: max_position_embeddings. Only dynamic positions go beyond.
    max_length: int | None = None
    # 64 tokens are generated; a network whose embedding is tied repeats one of them.
    greedy: bool = False
    gradient: bool = False

    def __str__(self) -> str:
        return f"{self.family}: {self.option}"

    @property
    def raw(self) -> dict[str, Any]:
        """config.json."""
        return {"model_type": self.family} | SMALL[self.family] | self.config


def _rope(kind: str, **numbers: Any) -> dict[str, Any]:
    return {"rope_parameters": _THETA | {"rope_type": kind} | numbers}


def _yarn(**numbers: Any) -> dict[str, Any]:
    numbers = {"factor": 4.0, "original_max_position_embeddings": 32} | numbers
    return _rope("yarn", beta_fast=4.0, beta_slow=1.0, **numbers)


_HALF = {"partial_rotary_factor": 0.5}  # of 16: four pairs
_WINDOW = {"sliding_window": 5}
_LATE_WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 2,
}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
_BIAS = {"attention_bias": True}

CASES = [
    Case("gpt2", "default", gradient=True),
    Case("gpt2", "`n_inner`", {"n_inner": 40}),
    Case("gpt2", "`tie_word_embeddings=False`", _UNTIED, greedy=True),
    Case("gpt2", "`scale_attn_weights=False`", {"scale_attn_weights": False}),
    Case("gpt2", '`activation_function="relu"`', {"activation_function": "relu"}),
    Case("gpt2", '`activation_function="gelu"`', {"activation_function": "gelu"}),
    Case(
        "gpt_neox",
        "default, a quarter of each head rotary",
        greedy=True,
        gradient=True,
    ),
    Case("gpt_neox", "`use_parallel_residual=False`", {"use_parallel_residual": False}),
    Case("gpt_neox", "`attention_bias=False`", {"attention_bias": False}),
    Case("gpt_neox", "`tie_word_embeddings=True`", _TIED),
    Case(
        "gpt_neox",
        "`partial_rotary_factor=1.0`",
        {"rope_parameters": _THETA | {"partial_rotary_factor": 1.0}},
    ),
    Case("gpt_neox", "linear rotary positions", _rope("linear", factor=3.0, **_HALF)),
    Case(
        "gpt_neox",
        "dynamic rotary positions",
        _rope("dynamic", factor=2.0, **_HALF) | {"max_position_embeddings": 8},
        max_length=128,
    ),
    Case("gpt_neox", "yarn rotary positions", _yarn(**_HALF)),
    Case("llama", "default, grouped queries", greedy=True, gradient=True),
    Case("llama", "a key and value head a query head", {"num_key_value_heads": 4}),
    Case("llama", "`tie_word_embeddings=True`", _TIED),
    Case("llama", "`attention_bias=True`", _BIAS),
    Case("llama", "`mlp_bias=True`", {"mlp_bias": True}),
    Case("llama", "`head_dim`", {"head_dim": 12}),
    Case("llama", '`hidden_act="gelu"`', {"hidden_act": "gelu"}),
    Case("llama", "linear rotary positions", _rope("linear", factor=3.0)),
    Case(
        "llama",
        "dynamic rotary positions",
        _rope("dynamic", factor=2.0) | {"max_position_embeddings": 8},
        max_length=128,
    ),
    Case(
        "llama",
        "llama3 rotary positions",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    Case("llama", "yarn rotary positions", _yarn()),
    Case(
        "llama",
        "yarn rotary positions, `attention_factor`",
        _yarn(attention_factor=1.7),
    ),
    Case("llama", "yarn rotary positions, `truncate=False`", _yarn(truncate=False)),
    Case(
        "llama",
        "yarn rotary positions, `mscale`",
        _yarn(mscale=4.0, mscale_all_dim=1.0),
    ),
    Case("mistral", "default, no window"),
    Case("mistral", "`sliding_window`", _WINDOW, greedy=True),
    Case("mistral", "`head_dim`", {"head_dim": 12}),
    Case("qwen2", "default, biases on queries, keys and values"),
    Case("qwen2", "`tie_word_embeddings=True`", _TIED),
    Case(
        "qwen2",
        "`sliding_window` from layer `max_window_layers` on",
        _LATE_WINDOW,
        greedy=True,
    ),
    Case("qwen3", "default, queries and keys normalised"),
    Case("qwen3", "`attention_bias=True`", _BIAS),
    Case(
        "qwen3",
        "`sliding_window` from layer `max_window_layers` on",
        _LATE_WINDOW,
        greedy=True,
    ),
    Case("qwen3", "yarn rotary positions", _yarn()),
    Case(
        "gemma2",
        "default, soft-caps, every second layer with a window",
        gradient=True,
    ),
    Case("gemma2", "`attn_logit_softcapping=None`", {"attn_logit_softcapping": None}),
    Case("gemma2", "`final_logit_softcapping=None`", {"final_logit_softcapping": None}),
    Case("gemma2", "`query_pre_attn_scalar`", {"query_pre_attn_scalar": 4}),
    Case("gemma2", "`attention_bias=True`", _BIAS),
    Case("gemma2", "`tie_word_embeddings=False`", _UNTIED, greedy=True),
    Case(
        "gemma3_text",
        "default, two kinds of layers, each with its base of rotary positions",
    ),
    Case(
        "gemma3_text",
        "linear rotary positions of the layers without a window",
        {
            "rope_parameters": _TWO_BASES
            | {
                "full_attention": _THETA | {"rope_type": "linear", "factor": 8.0},
            }
        },
    ),
    Case("gemma3_text", "`final_logit_softcapping`", {"final_logit_softcapping": 2.0}),
    Case("gemma3_text", "`attention_bias=True`", _BIAS),
    Case("gemma3_text", "`tie_word_embeddings=False`", _UNTIED, greedy=True),
    Case("olmo2", "default, norms after attention and MLP", greedy=True),
    Case("olmo2", "grouped queries", {"num_key_value_heads": 2}),
    Case("olmo2", "`attention_bias=True`", _BIAS),
    Case("phi3", "default, fused projections"),
    Case(
        "phi3",
        "`partial_rotary_factor=0.5`",
        {"rope_parameters": _THETA | _HALF},
    ),
    Case("phi3", "`sliding_window`", _WINDOW, greedy=True),
    Case("phi3", "`tie_word_embeddings=True`", _TIED),
    Case("mixtral", "default, two of four experts", gradient=True),
    Case("mixtral", "`num_experts_per_tok=3`", {"num_experts_per_tok": 3}),
    Case("mixtral", "`sliding_window`", _WINDOW, greedy=True),
    Case("mixtral", "`head_dim`", {"head_dim": 12}),
    Case("mixtral", "`tie_word_embeddings=True`", _TIED),
    Case("qwen3_moe", "default, two of eight experts"),
    Case("qwen3_moe", "`norm_topk_prob=True`", {"norm_topk_prob": True}),
    Case("qwen3_moe", "`sliding_window`", _LATE_WINDOW, greedy=True),
    Case("qwen3_moe", "`attention_bias=True`", _BIAS),
]
# The first case of every family.
DEFAULTS = [next(group) for _, group in itertools.groupby(CASES, lambda c: c.family)]

BEGIN, END = "<!-- begin: families -->", "<!-- end: families -->"


def table() -> str:
    """Markdown: what of which family is compared with transformers' torch model."""
    lines = ["| family | class | option | compared |", "|---|---|---|---|"]
    for case in CASES:
        tests = ["logits"]
        tests += ["scores", "round trip"] if case in DEFAULTS else []
        tests += ["64 greedy tokens"] if case.greedy else []
        tests += ["gradients"] if case.gradient else []
        name, kind = f"`{case.family}`", f"`{FAMILIES[case.family].architecture}`"
        first = case in DEFAULTS
        lines.append(
            f"| {name if first else ''} | {kind if first else ''} | {case.option} "
            f"| {', '.join(tests)} |"
        )
    return "\n".join(lines) + "\n"


def torch_model(case: Case, kind: str = "policy", *, labels: int = 1) -> Any:
    """transformers' model of a case, noise on every parameter, norms and biases too."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    raw: Any = case.raw
    if kind == "reward":
        auto, raw = AutoModelForSequenceClassification, raw | {"num_labels": labels}
    config = AutoConfig.for_model(**raw)
    # "eager" is the only one that has soft-caps.
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def torch_logits(model: Any, tokens: Any) -> Any:
    """float32 [T, V] of one sequence alone, without padding."""
    import torch

    with torch.no_grad():
        # One that is short brings dynamic positions back to where they began.
        model(input_ids=torch.ones((1, 1), dtype=torch.int64), use_cache=False)
        ids = torch.tensor([list(tokens)], dtype=torch.int64)
        return model(input_ids=ids, use_cache=False).logits[0].numpy()


def assert_one_line(error, *parts: str):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
