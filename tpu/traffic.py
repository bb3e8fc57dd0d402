"""Bytes that a compiled program reads and writes, by what asks for them.

Of an instruction, its operands and its results, each once; of a slice of an array, or
one written into it, the slice alone. What happens within a fusion moves nothing.
"""

import collections
import re
from collections.abc import Iterable

from tpu.hlo import Array, Instruction, Program

# No bytes move, or those of another instruction do.
FREE = set(
    "parameter constant tuple get-tuple-element bitcast while call conditional "
    "after-all optimization-barrier".split()
)
SLICES = ("dynamic-slice", "slice", "gather")


def traffic(program: Program, *, loops: bool = True) -> dict[str, float]:
    """Bytes of a run on one device, by cause."""
    found: dict[str, float] = collections.defaultdict(float)
    for name, times in program.runs():
        for instruction in program.computations[name].values():
            moved = moved_bytes(program, name, instruction)
            found[instruction.cause] += moved * (times if loops else 1)
    return dict(found)


def moved_bytes(program: Program, name: str, instruction: Instruction) -> float:
    """Bytes that an instruction of the computation ``name`` reads and writes."""
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    if "AllocateBuffer" in instruction.text:
        return 0
    if instruction.name.startswith("async-collective-done"):
        return 0
    scope = program.computations[name]
    if instruction.opcode == "fusion":
        inner, passed = instruction.called[0], _passed(instruction)
        operands = [i for i in range(len(instruction.operands)) if i not in passed]
        reads = sum(_read(program, inner, i) for i in operands)
        return reads + _written(program, inner, passed.values())
    return _own(scope, instruction)


def _own(scope: dict[str, Instruction], instruction: Instruction) -> float:
    if instruction.opcode in SLICES:
        return 2 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2 * scope[instruction.operands[1]].bytes
    if instruction.opcode == "copy-start":  # (to, from, …)
        return sum(array.bytes for array in instruction.arrays[:2])
    if instruction.opcode == "slice-start":  # (whole, slice, …)
        whole, part = instruction.arrays[:2]
        return (not whole.weightless) * Array(*part[:2]).bytes + part.bytes
    operands = sum(scope[operand].bytes for operand in instruction.operands)
    return operands + instruction.bytes


def _read(program: Program, name: str, index: int) -> float:
    """Bytes that the fusion ``name`` reads of its operand ``index``."""
    scope = program.computations[name]
    parameter = next(
        i
        for i in scope.values()
        if i.opcode == "parameter" and i.text.startswith(f"{index})")
    )
    return min(parameter.bytes, _used(program, name, parameter))


def _used(program: Program, name: str, whole: Instruction) -> float:
    """Bytes of an array that the computation ``name`` looks at."""
    used = 0.0
    for user in program.computations[name].values():
        for at, operand in enumerate(user.operands):
            if operand != whole.name:
                continue
            if user.opcode == "bitcast":
                used += _used(program, name, user)
            elif user.opcode == "fusion":
                used += _read(program, user.called[0], at)
            elif user.opcode in SLICES and at == 0:
                used += user.bytes
            elif user.opcode != "dynamic-update-slice" or at:
                used += whole.bytes
    return used


def _passed(fusion: Instruction) -> dict[int, tuple[int, ...]]:
    """Operands that are results as well, by number, of a fusion that carries on with a
    collective: what that moves is not the fusion's.
    """
    if "calls=%async_collective" not in fusion.text:
        return {}
    found: dict[int, tuple[int, ...]] = {}
    for result, operand in re.findall(r"\{(\d+)\}: \((\d+), \{\}", fusion.text):
        found[int(operand)] = (*found.get(int(operand), ()), int(result))
    return found


def _written(
    program: Program, name: str, passed: Iterable[tuple[int, ...]] = ()
) -> float:
    """Bytes that the fusion ``name`` writes, but for results that are passed on."""
    scope, without = program.computations[name], {n for some in passed for n in some}
    root = next(i for i in scope.values() if i.root)
    if not without:
        return _result(program, name, root)
    made = [scope[x] for i, x in enumerate(root.operands) if i not in without]
    return sum(_result(program, name, instruction) for instruction in made)


def _result(program: Program, name: str, made: Instruction) -> float:
    scope = program.computations[name]
    if made.opcode == "tuple":
        return sum(_result(program, name, scope[x]) for x in made.operands)
    if made.opcode == "bitcast":
        return _result(program, name, scope[made.operands[0]])
    if made.opcode == "fusion":
        return _written(program, made.called[0])
    if made.opcode == "dynamic-update-slice":
        return scope[made.operands[1]].bytes
    return made.bytes
