"""What an update of 1.2 billion parameters computes, reads and writes; without a TPU.

  pip install '.[tpu]'
  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tpu.flops

Operations of the compiled program over those that the update's equations ask for, bytes
by cause, and whether an array of all tokens' logits is in it. One v5p chip of 95 GB,
which holds state and activations without `remat`; nothing is run. The counts are the
compiler's, but for loops, which it counts once, and `tpu.cost` as often as they run.
"""

import dataclasses
from typing import NamedTuple

from jax.experimental import topologies

from experiments import cli
from rlhf_jax.models import TransformerConfig
from rlhf_jax.steps import PolicyConfig
from rlhf_jax.terminal import print_table
from tpu.cost import flops, products
from tpu.decode import MODEL as DECODED
from tpu.hlo import Program, parse
from tpu.phases import Algorithm
from tpu.traffic import traffic
from tpu.updates import compile_update

MODEL = dataclasses.replace(DECODED, param_dtype="float32", max_length=2_048)
UPDATES: tuple[Algorithm, ...] = ("sft", "dpo", "ppo")


@dataclasses.dataclass(frozen=True)
class Config:
    """Updates of 2 rows of 2,048 tokens, bfloat16 with float32 masters."""

    updates: tuple[Algorithm, ...] = UPDATES
    """Which; one takes minutes to compile."""
    rows: int = 2
    """Rows, both sides of a pair counted."""


def own_flops(model: TransformerConfig, update: str, rows: int) -> float:
    """What the equations of an update ask for, in operations.

    A token's forward pass is 2·N, N the parameters in matrix products, and its causal
    attention, 2·L·T·d (two products with T / 2 tokens, d the width of all heads). A
    backward pass is two forward ones: 6·N + 6·L·T·d. DPO adds the reference's forward
    pass; PPO has policy and critic in every epoch, the critic without a vocabulary.
    """
    width = model.n_heads * model.d_head
    attention = model.d_model * (2 * width + 2 * model.n_kv_heads * model.d_head)
    layer = attention + 3 * model.d_model * model.d_ff
    mixing = 2 * model.n_layers * model.max_length * width
    trunk = 2 * model.n_layers * layer + mixing
    policy = trunk + 2 * model.d_model * model.vocab_size
    passes = {
        "sft": 3 * policy,
        "dpo": 4 * policy,
        "ppo": PolicyConfig().epochs * 3 * (policy + trunk),
    }
    return rows * model.max_length * passes[update]


def logits_arrays(program: Program, model: TransformerConfig, rows: int) -> list[str]:
    """Arrays that could be logits of all tokens: B·T·V elements, or times a number."""
    size = rows * model.max_length * model.vocab_size
    made = {
        array
        for computation in program.computations.values()
        for instruction in computation.values()
        for array in instruction.arrays
    }
    return [str(a) for a in made if a.size >= size and a.size % model.vocab_size == 0]


class Count(NamedTuple):
    """Of one update's program, for one chip."""

    totals: dict[str, float]
    products: dict[str, float]  # operations by cause
    moved: dict[str, float]  # bytes by cause


def count(update: Algorithm, rows: int) -> Count:
    """Compiles and counts.

    Raises:
      ValueError: the program has an array of logits.
    """
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5p:1x1x1", chips_per_host_bounds=(1, 1, 1)
    )
    compiled = compile_update(update, MODEL, topology.devices, rows)
    program, counted = parse(compiled.as_text()), compiled.cost_analysis()
    found = logits_arrays(program, MODEL, rows)
    if found:
        raise ValueError(f"{update}: arrays as large as the logits: {found}")
    moved, once = traffic(program), traffic(program, loops=False)
    own, whole = own_flops(MODEL, update, rows), flops(program)
    totals = {
        "the model's own, TFLOP": own / 1e12,
        "compiled, TFLOP": whole / 1e12,
        "compiled / own": whole / own,
        "loops once, TFLOP": flops(program, loops=False) / 1e12,
        "the same by the compiler, TFLOP": counted["flops"] / 1e12,
        "bytes, GB": sum(moved.values()) / 1e9,
        "loops once, GB": sum(once.values()) / 1e9,
        "the same by the compiler, GB": counted["bytes accessed"] / 1e9,
    }
    return Count(totals, products(program), moved)


def main(config: Config) -> dict[str, dict[str, float]]:
    """Compiles, prints the tables, returns the totals by update."""
    counts = {update: count(update, config.rows) for update in config.updates}
    totals = {update: found.totals for update, found in counts.items()}
    size = f"{config.rows} rows of {MODEL.max_length:,} tokens"
    epochs = PolicyConfig().epochs
    _table(f"One update, {size} (ppo: {epochs} epochs), one v5p chip", totals, 1.0)
    moved = {update: found.moved for update, found in counts.items()}
    _table("Matrix products, TFLOP", {u: c.products for u, c in counts.items()}, 1e12)
    _table("Bytes read and written, GB", moved, 1e9)
    largest = config.rows * MODEL.max_length * MODEL.vocab_size
    print(f"No array of {largest:,} logits, the size of [B, T, V], nor a multiple.")
    return totals


def _table(title: str, columns: dict[str, dict[str, float]], unit: float) -> None:
    names = dict.fromkeys(name for found in columns.values() for name in found)
    values = lambda name: [found.get(name, 0.0) / unit for found in columns.values()]
    print_table(title, ["", *columns], [[name, *values(name)] for name in names])


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
