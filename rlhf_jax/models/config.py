"""What a decoder is, in numbers and words that can be written as JSON.

One decoder is all families: what tells GPT-2 from Llama, Gemma or Mixtral are the
fields below. The defaults are Llama's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from rlhf_jax.errors import UserError

DType = Literal["float32", "bfloat16"]
CacheDType = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions, Su et al. 2021, arXiv:2104.09864, and how they are stretched.

    ``dynamic`` (NTK-aware) depends on the length of the sequence beyond
    ``original_length``; ``yarn`` is Peng et al. 2023, arXiv:2309.00071; ``llama3`` is
    section 3.4.2 of Llama 3, arXiv:2407.21783.
    """

    theta: float = 10_000.0  # base of the wavelengths
    dims: int | None = None  # rotated entries of a head, the first ones; None: all
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    factor: float = 1.0  # how much longer than original_length texts may be
    original_length: int = 0  # tokens the wavelengths were trained for
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whole numbers for the limits of its ramp
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    local_theta: float | None = None  # of layers with a window, which are not stretched

    def __post_init__(self):
        if self.kind != "default" and not self.factor > 0:
            raise UserError(f"rope.factor={self.factor}: set it above 0")
        if self.kind in ("dynamic", "llama3", "yarn") and self.original_length <= 0:
            raise UserError(
                f"rope.original_length={self.original_length}: rope.kind={self.kind!r} "
                "stretches from a length; set it above 0"
            )
        if self.dims is not None and (self.dims <= 0 or self.dims % 2):
            raise UserError(f"rope.dims={self.dims}: rotary pairs need an even number")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of a decoder; ``dataclasses.asdict`` gives its JSON.

    Raises:
      UserError: a number that no decoder can have; the message names the option.

    >>> config = TransformerConfig(
    ...     vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4,
    ...     d_ff=48, max_length=64)
    >>> TransformerConfig.from_json(dataclasses.asdict(config)) == config
    True
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads, each shared by n_heads / n_kv_heads
    d_head: int
    d_ff: int  # width of the MLP, of one expert where there are several
    max_length: int  # slots of a row, padding included

    # Tokens and positions.
    positions: Literal["rope", "learned"] = "rope"
    rope: RopeConfig = RopeConfig()
    scale_embeddings: bool = False  # by √d_model (Gemma)
    tie_embeddings: bool = False  # logits from the transposed embedding
    logit_softcap: float | None = None  # c·tanh(logits / c)

    # Norms and residuals.
    norm: Literal["rms", "centered_rms", "layer"] = "rms"  # centred: by 1 + scale
    norm_eps: float = 1e-5
    pre_norm: bool = True  # of what attention and MLP read
    post_norm: bool = False  # of what they add (Gemma; OLMo 2 has no other)
    parallel_residual: bool = False  # attention and MLP read the same (GPT-NeoX)

    # Attention.
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"  # a head's width, or all heads'
    attn_scale: float | None = None  # of q·k; None: 1/√d_head
    attn_softcap: float | None = None
    window: int | None = None  # tokens, itself included, that a local layer sees
    local_layers: tuple[int, ...] = ()  # which layers have that window

    # MLP: gated, or two projections; or a mixture of gated experts.
    gated_mlp: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    mlp_bias: bool = False
    n_experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = True  # the chosen experts' weights sum to 1

    # Numerics.
    dtype: DType = "float32"  # of activations
    cache_dtype: CacheDType | None = None  # of keys and values in a cache; None: dtype
    param_dtype: DType = "float32"
    remat: bool = False  # recompute all of a layer in its backward pass, not only what
    # is cheap: memory for a third more time
    scan_unroll: int = 1  # layers per iteration; more compiles longer, runs faster

    def __post_init__(self):
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)}: set it above 0")
        for holds, problem in self._rules():
            if not holds:
                raise UserError(problem)

    def _rules(self) -> list[tuple[bool, str]]:
        """(does it hold, what to say if not) of everything that spans options."""
        local = [layer for layer in self.local_layers if layer >= self.n_layers]
        dims = self.rope.dims or self.d_head
        return [
            (
                self.n_heads % self.n_kv_heads == 0,
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}: "
                "set it to a divisor",
            ),
            (
                self.positions != "rope" or (dims % 2 == 0 and dims <= self.d_head),
                f"{dims} rotary entries in heads of d_head={self.d_head}: expected an "
                "even number within the head; change rope.dims or d_head",
            ),
            *(
                (
                    getattr(self, name) in ("float32", "bfloat16"),
                    f"{name}={getattr(self, name)!r}: set it to 'float32' or "
                    "'bfloat16'",
                )
                for name in ("dtype", "param_dtype")
            ),
            (
                self.cache_dtype in (None, "float32", "bfloat16", "int8"),
                f"cache_dtype={self.cache_dtype!r}: set it to 'float32', 'bfloat16' or "
                "'int8', or None",
            ),
            (
                not self.local_layers or (self.window or 0) > 0,
                f"window={self.window}: local_layers need a window of at least 1 token",
            ),
            (
                not local,
                f"local_layers={local}: there are n_layers={self.n_layers} layers",
            ),
            (
                self.n_experts == 0 or 0 < self.experts_per_token <= self.n_experts,
                f"experts_per_token={self.experts_per_token}: expected 1 … "
                f"n_experts={self.n_experts}",
            ),
            (
                self.n_experts == 0 or (self.gated_mlp and not self.mlp_bias),
                "n_experts: experts are gated and have no bias; set gated_mlp=True and "
                "mlp_bias=False",
            ),
        ]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TransformerConfig":
        """The config whose ``dataclasses.asdict`` was written as JSON."""
        rope = RopeConfig(**values["rope"])
        local = tuple(values["local_layers"])
        return cls(**{**values, "rope": rope, "local_layers": local})


_POSITIVE = (
    "vocab_size",
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "d_head",
    "d_ff",
    "max_length",
    "norm_eps",
    "scan_unroll",
)
