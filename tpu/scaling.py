"""Weak scaling of an update by the compiler's count: 1 to 64 devices, none needed.

  python -m tpu.scaling --out scaling.jsonl

The update of SFT, with a fixed number of rows a device, is compiled for simulated CPU
devices over a mesh of `rlhf_jax.sharding`: weights whole on each device (data), or in
parts (fsdp). What a device computes and sends should not depend on their number n, but
for (n − 1) / n: of n parts it has one already. "whole" is what is sent over that.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from experiments import cli
from rlhf_jax.models import TransformerConfig
from rlhf_jax.terminal import print_table
from tpu.collectives import sent
from tpu.cost import flops
from tpu.hlo import parse
from tpu.updates import compile_sft

# 29 million parameters; every width can be cut into 64 parts.
MODEL = TransformerConfig(
    vocab_size=32_768,
    d_model=512,
    n_layers=4,
    n_heads=8,
    n_kv_heads=4,
    d_head=64,
    d_ff=1_536,
    max_length=128,
    tie_embeddings=True,
    dtype="bfloat16",
)
MESHES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Config:
    """Meshes of 1 to 64 devices."""

    devices: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """How many, each number once."""
    rows: int = 8
    """Rows of 128 tokens a device."""
    out: Path | None = None
    """Where the numbers go, a JSON object a line."""


def count(mesh: str, devices: int, rows: int) -> dict[str, Any]:
    """What a device computes and sends in an update, in GFLOP and MB."""
    parts = {"fsdp": devices} if mesh == "fsdp" else {}
    there = jax.devices("cpu")[:devices]
    compiled: Any = compile_sft(MODEL, there, rows * devices, **parts)
    program = parse(compiled.as_text())
    moved = {kind: value / 1e6 for kind, value in sent(program, devices).items()}
    whole = sum(moved.values())
    return {
        "mesh": mesh,
        "devices": devices,
        "gflop": flops(program) / 1e9,
        "sent_mb": whole,
        "whole_mb": whole * devices / max(devices - 1, 1),
        **moved,
    }


def spread(found: list[dict[str, Any]], name: str) -> float:
    """Largest over smallest beyond two devices, less 1; a share."""
    values = [line[name] for line in found if line["devices"] > 2]
    return max(values) / min(values) - 1


def main(config: Config) -> list[dict[str, Any]]:
    """Compiles, prints the table, returns its lines."""
    jax.config.update("jax_num_cpu_devices", max(config.devices))
    found = [count(m, n, config.rows) for m in MESHES for n in config.devices]
    names = list(dict.fromkeys(name for line in found for name in line))
    print_table(
        f"An update of {config.rows} rows of {MODEL.max_length} tokens a device",
        names,
        [[line.get(name, 0.0) for name in names] for line in found],
    )
    for mesh in MESHES:
        lines = [line for line in found if line["mesh"] == mesh]
        if max(config.devices) > 2:
            print(
                f"{mesh}, beyond two devices: computed within "
                f"{spread(lines, 'gflop'):.1%}, whole within "
                f"{spread(lines, 'whole_mb'):.1%}"
            )
    if config.out is not None:
        config.out.write_text("".join(json.dumps(line) + "\n" for line in found))
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
