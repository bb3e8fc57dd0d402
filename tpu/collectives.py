"""Bytes that the devices of a compiled program send each other, loops as they run."""

import collections
import math
import re

from tpu.hlo import Instruction, Program

# How often a device sends S · (n − 1) / n bytes, in a ring of n, of an array that is S
# bytes when whole. An all-reduce is a reduce-scatter and an all-gather.
PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}


def sent(program: Program, devices: int) -> dict[str, float]:
    """Bytes that one device sends in a run, by kind of collective."""
    found: dict[str, float] = collections.defaultdict(float)
    for name, times in program.runs():
        for scope, instruction in program.collectives(name):
            moved = _sent(scope, instruction, devices)
            found[instruction.collective] += times * moved
    return dict(found)


def group_size(text: str, devices: int) -> int:
    """How many devices take part, by an instruction's replica groups.

    >>> group_size("replica_groups={{0,1},{2,3}}, x", 4), group_size("", 4)
    (2, 4)
    >>> group_size("replica_groups=[2,8]<=[16], x", 16)
    8
    >>> group_size("replica_groups=mesh['x'=2,'y'=4] {'y'}, x", 8)
    4
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if listed:
        return len(listed.group(1).split(","))
    shaped = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    if shaped:
        return int(shaped.group(1))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if mesh:
        sizes = dict(axis.split("=") for axis in mesh.group(1).split(","))
        return math.prod(int(sizes[axis]) for axis in mesh.group(2).split(","))
    return devices


def _sent(
    scope: dict[str, Instruction], instruction: Instruction, devices: int
) -> float:
    moved = float(sum(scope[operand].bytes for operand in instruction.operands))
    if instruction.collective == "collective-permute":
        return moved
    n = group_size(instruction.text, devices)
    if instruction.collective == "all-gather":
        moved *= n
    return PASSES[instruction.collective] * moved * (n - 1) / n
