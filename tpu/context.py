"""What a device holds of long rows that a mesh cuts; simulated devices, none needed.

  python -m tpu.context

The update of SFT, with as many rows of as many tokens whatever the number n of devices,
is compiled over a mesh of `rlhf_jax.sharding` whose axis `sequence` they are. What each
holds and computes should be an n-th; what it sends should not grow with n, but for
(n − 1) / n. "square" is how many arrays have an entry for every two tokens of a row.
"""

import dataclasses
from typing import Any

import jax

from experiments import cli
from rlhf_jax.models import TransformerConfig
from rlhf_jax.terminal import print_table
from tpu.collectives import sent
from tpu.cost import flops
from tpu.hlo import Array, Program, parse
from tpu.scaling import MODEL
from tpu.updates import compile_sft


@dataclasses.dataclass(frozen=True)
class Config:
    """Rows of a decoder of 29 million parameters, over 1 to 8 devices."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many, each number once."""
    tokens: int = 16_384
    """Of a row."""
    rows: int = 1
    """All devices together."""


def count(
    model: TransformerConfig, devices: int, tokens: int, rows: int
) -> dict[str, Any]:
    """What a device holds, computes and sends in an update."""
    model = dataclasses.replace(model, max_length=tokens, remat=True)
    there = jax.devices("cpu")[:devices]
    compiled: Any = compile_sft(model, there, rows, sequence=devices)
    program, memory = parse(compiled.as_text()), compiled.memory_analysis()
    moved = {kind: value / 1e6 for kind, value in sent(program, devices).items()}
    return {
        "devices": devices,
        "state_mb": memory.argument_size_in_bytes / 1e6,
        "beside_mb": memory.temp_size_in_bytes / 1e6,
        "gflop": flops(program) / 1e9,
        "square": len(square(program, tokens)),
        "sent_mb": sum(moved.values()),
        **moved,
    }


def square(program: Program, tokens: int) -> list[Array]:
    """Arrays with an entry for every two tokens of a row: [T, T], or larger.

    For tokens more than the ids of a slice of the vocabulary, which are as wide.
    """
    return sorted(
        {
            array
            for computation in program.computations.values()
            for instruction in computation.values()
            for array in instruction.arrays
            if sum(size >= tokens for size in array.shape) > 1
        }
    )


def main(config: Config) -> list[dict[str, Any]]:
    """Compiles, prints the table, returns its lines."""
    jax.config.update("jax_num_cpu_devices", max(config.devices))
    found = [count(MODEL, n, config.tokens, config.rows) for n in config.devices]
    names = list(dict.fromkeys(name for line in found for name in line))
    print_table(
        f"An update of {config.rows} rows of {config.tokens:,} tokens over n devices",
        names,
        [[line.get(name, 0.0) for name in names] for line in found],
    )
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
