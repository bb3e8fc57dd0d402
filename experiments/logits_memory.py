"""What a step of fine-tuning holds with its logits, and without them.

  python -m experiments.logits_memory --rows 1 4

The memory that the compiler plans for one update, beside parameters and optimiser;
nothing is run. The same network once says what its logits are made of, and once only
gives the logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments import cli
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.steps import create_state, sft_step
from rlhf_jax.terminal import print_table
from rlhf_jax.types import ApplyFn, TokenBatch

SMALL = TransformerConfig(
    vocab_size=152_064,
    d_model=256,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    d_head=64,
    d_ff=768,
    max_length=2_048,
    tie_embeddings=True,
    remat=True,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Memory of one update, with and without logits."""

    model: TransformerConfig = SMALL
    """The network."""
    rows: tuple[int, ...] = (1, 4)
    """Rows of an update, each as long as the network's context."""


def main(config: Config) -> list[tuple[int, int]]:
    """Prints the table, and returns its bytes: with the logits, without them."""
    fused = policy_apply(config.model)

    def plain(params, batch, **cache):
        return fused(params, batch, **cache)._replace(readout=None)

    shown, found = [], []
    for rows in config.rows:
        (held, whole), (_, less) = (
            planned(f, config.model, rows) for f in (plain, fused)
        )
        found.append((held + whole, held + less))
        share = (held + less) / (held + whole)
        shown.append([rows, held / 1e6, whole / 1e6, less / 1e6, share])
    print_table(
        f"One update of {config.model.max_length:,} tokens a row, "
        f"{config.model.vocab_size:,} ids, MB",
        ["rows", "state", "+ with logits", "+ without", "share of the whole"],
        shown,
    )
    return found


def planned(apply_fn: ApplyFn, model: TransformerConfig, rows: int) -> tuple[int, int]:
    """Bytes of the arguments, and of what the compiled step needs beside them."""
    tx = make_optimizer(OptimConfig(learning_rate=1e-5, schedule="constant"), 1)
    init = lambda key: create_state(apply_fn, init_params(CausalLM(model), key=key), tx)
    state = jax.eval_shape(init, jax.random.key(0))
    shape = (rows, model.max_length)
    ids: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
    mask: Any = jax.ShapeDtypeStruct(shape, jnp.bool_)
    step = jax.jit(sft_step, donate_argnums=0)
    batch = TokenBatch(ids, ids, ids, mask)
    memory: Any = step.lower(state, batch).compile().memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
