"""What a phase holds, computes, moves and sends, by its compiled program."""

import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rlhf_jax.sharding import state_shardings
from tpu.chips import Chip
from tpu.collectives import sent
from tpu.cost import flops
from tpu.hlo import parse
from tpu.phases import Phase
from tpu.traffic import traffic
from tpu.updates import compile_phase


class Count(NamedTuple):
    """Of one chip, in a phase."""

    peak: float  # bytes at its fullest, with what other phases left there
    flops: float  # operations
    moved: float  # bytes read from and written to memory
    sent: dict[str, float]  # bytes sent to other chips, by kind of collective

    def times(self, chip: Chip) -> dict[str, float]:
        """Seconds of each resource at its full rate."""
        return {
            "operations": self.flops / chip.flops,
            "memory": self.moved / chip.bandwidth,
            "links": sum(self.sent.values()) / chip.links,
        }

    def seconds(self, chip: Chip) -> float:
        """At least: the busiest resource's, if all else happened meanwhile."""
        return max(self.times(chip).values())

    def bound(self, chip: Chip) -> str:
        """Which resource that is."""
        times = self.times(chip)
        return max(times, key=lambda name: times[name])


class Refused(NamedTuple):
    """The compiler found no way to fit a phase into a chip's memory."""

    needed: float  # bytes, as far as it says


def count_phase(phase: Phase, mesh: Mesh, resident: Any) -> Count | Refused:
    """Compiles a phase; ``resident`` are all trees that lie on the chips meanwhile."""
    try:
        compiled = compile_phase(phase, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"(\d+(?:\.\d+)?)([KMGT])", str(error))
        units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        needed = max((float(n) * units[unit] for n, unit in sizes), default=0.0)
        return Refused(needed)
    text = compiled.as_text()
    program = parse(text)
    return Count(
        peak=peak_bytes(compiled, phase, mesh, resident),
        flops=flops(program),
        moved=sum(traffic(parse(text, on_chip=False)).values()),
        sent=sent(program, mesh.size),
    )


def peak_bytes(compiled: Any, phase: Phase, mesh: Mesh, resident: Any) -> float:
    """Of a chip while a phase runs: what it is given, what it makes, and the rest.

    For a TPU the compiler says what is there at a time; elsewhere it has no better
    number than the sum of what is there at any time.
    """
    memory = compiled.memory_analysis()
    if mesh.devices.flat[0].platform == "tpu":
        there = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    else:
        there = memory.argument_size_in_bytes + _own_bytes(compiled)
    return there + bytes_a_chip(resident, mesh, only=unused(phase, resident))


def unused(phase: Phase, resident: Any) -> list[Any]:
    """Leaves that lie on the chips meanwhile, and are no arguments of the phase."""
    used = {id(leaf) for leaf in jax.tree.leaves(phase.held)}
    return [leaf for leaf in jax.tree.leaves(resident) if id(leaf) not in used]


def _own_bytes(compiled: Any) -> float:
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return made + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def bytes_a_chip(tree: Any, mesh: Mesh, *, only: list[Any] | None = None) -> float:
    """Of a tree in parts, each leaf once; of ``only`` some of its leaves, if given."""
    wanted = None if only is None else {id(leaf) for leaf in only}
    where = jax.tree.leaves(state_shardings(tree, mesh))
    total, seen = 0, set()
    for leaf, sharding in zip(jax.tree.leaves(tree), where, strict=True):
        if id(leaf) in seen or (wanted is not None and id(leaf) not in wanted):
            continue
        seen.add(id(leaf))
        shape = sharding.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        for n in shape:
            size *= n
        total += size
    return float(total)
