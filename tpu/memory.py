"""The plan's memory against what a process really takes, on the CPU.

  python -m tpu.memory

The update of each algorithm is planned as in `tpu.plan`, but for the CPU, and then run.
Measured is by how much the resident memory of the process grows over what it was before
there was any array, at its highest point in two updates.
"""

import dataclasses
import gc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import cli
from experiments.benchmark_inputs import MODELS
from rlhf_jax.models import decode_layout
from rlhf_jax.sharding import make_mesh
from rlhf_jax.terminal import print_table
from tpu.counts import peak_bytes, unused
from tpu.phases import Algorithm, Work, make_iteration
from tpu.updates import compile_phase, place

MODEL = dataclasses.replace(MODELS["M25"], max_length=256, scan_unroll=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """Updates of 34 million parameters, float32, rows of 256 tokens."""

    algorithms: tuple[Algorithm, ...] = ("sft", "reward", "dpo", "ppo")
    """Whose updates."""
    rows: int = 16
    """Demonstrations, pairs or episodes."""


def compare(algorithm: Algorithm, rows: int) -> tuple[float, float]:
    """(planned, measured) bytes of an update at its fullest."""
    work = Work(algorithm, MODEL, rows, 128, 128, layout=decode_layout)
    iteration = make_iteration(work)
    phase, mesh = iteration.phases[-1], make_mesh(jax.devices("cpu")[:1])
    compiled = compile_phase(phase, mesh)
    planned = peak_bytes(compiled, phase, mesh, iteration.resident)
    gc.collect()
    before = _status("VmRSS")
    others = _allocated(unused(phase, iteration.resident))
    held, batch, _ = place(phase, mesh)
    held, batch = _allocated(held), _allocated(batch)
    Path("/proc/self/clear_refs").write_text("5")  # the highest point begins anew
    for _ in range(2):
        held = (compiled(held[0], batch, *held[1:])[0], *held[1:])
    jax.block_until_ready((held, others))
    return planned, _status("VmHWM") - before


def _allocated(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.full(x.shape, 1, x.dtype), shapes)


def _status(name: str) -> float:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * float(x.split()[1]) for x in lines if x.startswith(name))


def main(config: Config) -> dict[str, tuple[float, float]]:
    """Compares, prints the table, returns (planned, measured) bytes."""
    found = {name: compare(name, config.rows) for name in config.algorithms}
    print_table(
        f"An update of {config.rows} rows: memory at its fullest, MB",
        ["", "planned", "measured", "planned / measured"],
        [[name, p / 1e6, m / 1e6, p / m] for name, (p, m) in found.items()],
    )
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
