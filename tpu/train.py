"""A step of fine-tuning over TPU chips, by the compiler's own plan; no TPU is needed.

  pip install '.[tpu]'
  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tpu.train --fsdp 4 --tensor 2

The weights and their optimiser state lie in parts on eight v5e chips of 16 GB
(`rlhf_jax.sharding`). The compiler says what a chip holds, and where chips communicate.
"""

import collections
import dataclasses
import re

from jax.experimental import topologies

from experiments import cli
from rlhf_jax.terminal import print_table
from tpu.decode import MODEL as DECODED
from tpu.hlo import COLLECTIVES
from tpu.updates import compile_sft

MODEL = dataclasses.replace(DECODED, param_dtype="float32", remat=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """An update of 1.2 billion parameters, float32 masters, on eight v5e chips."""

    fsdp: int = 8
    """Parts of every weight and of its optimiser state."""
    sequence: int = 1
    """Parts of every row; further ones of the weights, too."""
    tensor: int = 1
    """Parts of heads, of the MLP's width and of the vocabulary."""
    rows: int = 16
    """Rows, all chips together."""
    tokens: int = 2_048
    """Of a row."""


def main(config: Config) -> dict[str, float]:
    """Compiles, prints the table, returns its numbers."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    parts = {n: getattr(config, n) for n in ("fsdp", "sequence", "tensor")}
    model = dataclasses.replace(MODEL, max_length=config.tokens)
    compiled = compile_sft(model, topology.devices, config.rows, **parts)
    memory = compiled.memory_analysis()
    found = {
        "state, GB a chip": memory.argument_size_in_bytes / 1e9,
        "beside it, GB a chip": memory.temp_size_in_bytes / 1e9,
        "reused for the new state, GB": memory.alias_size_in_bytes / 1e9,
    }
    calls = collections.Counter(
        re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text())
    )
    found |= {f"{name}, places in the program": calls[name] for name in COLLECTIVES}
    print_table(
        f"{config.rows} rows of {config.tokens:,} tokens on eight v5e chips, "
        + ", ".join(f"{name} {n}" for name, n in parts.items()),
        ["", ""],
        [[name, value] for name, value in found.items()],
    )
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
