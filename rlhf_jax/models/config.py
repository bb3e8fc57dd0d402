"""What a transformer is, in numbers that can be written as JSON."""

import dataclasses
from typing import Literal

from rlhf_jax.errors import UserError

DType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of a decoder; ``dataclasses.asdict`` gives its JSON.

    Raises:
      UserError: a number that no decoder can have; the message names the option.

    >>> config = TransformerConfig(
    ...     vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4,
    ...     d_ff=48, max_length=64)
    >>> TransformerConfig(**dataclasses.asdict(config)) == config
    True
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads, each shared by n_heads / n_kv_heads
    d_head: int
    d_ff: int  # width of the gated MLP
    max_length: int  # slots of a row, padding included
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-5
    tie_embeddings: bool = False  # logits from the transposed embedding
    dtype: DType = "float32"  # of activations and cache
    param_dtype: DType = "float32"
    remat: bool = False  # recompute each layer in the backward pass: memory for time
    scan_unroll: int = 1  # layers per iteration; more compiles longer, runs faster

    def __post_init__(self):
        positive = "vocab_size d_model n_layers n_heads n_kv_heads d_head d_ff".split()
        values = dataclasses.asdict(self)
        for name in [*positive, "max_length", "scan_unroll", "rope_theta", "norm_eps"]:
            if not values[name] > 0:
                raise UserError(f"{name}={values[name]}: set it above 0")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}: "
                "set it to a divisor"
            )
        if self.d_head % 2:
            raise UserError(f"d_head={self.d_head} is odd: rotary pairs need it even")
        for name in ("dtype", "param_dtype"):
            if values[name] not in ("float32", "bfloat16"):
                raise UserError(
                    f"{name}={values[name]!r}: set it to 'float32' or 'bfloat16'"
                )


def num_params(config: TransformerConfig) -> int:
    """Parameters of a ``CausalLM``: VD + L(2D + 2DHd + 2DKd + 3DF) + D (+ DV untied).

    No reference. H query heads and K key-value heads of width d, F the MLP's width.

    >>> num_params(TransformerConfig(
    ...     vocab_size=5, d_model=2, n_layers=1, n_heads=1, n_kv_heads=1, d_head=2,
    ...     d_ff=3, max_length=8, tie_embeddings=True))
    50
    """
    c = config
    attention = 2 * c.d_model * c.d_head * (c.n_heads + c.n_kv_heads)
    layer = 2 * c.d_model + attention + 3 * c.d_model * c.d_ff
    embeddings = c.vocab_size * c.d_model * (1 if c.tie_embeddings else 2)
    return embeddings + c.n_layers * layer + c.d_model
