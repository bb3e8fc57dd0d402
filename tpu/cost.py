"""What a compiled program computes, reads and writes, loops counted as they run.

By the rules of the compiler's own cost analysis, which counts a loop's body once: with
``loops=False`` the numbers are the compiler's.
"""

import collections
import math
import re
from collections.abc import Iterator

from tpu.hlo import Instruction, Program

# One operation an element of the result.
ELEMENTWISE = set(
    "add subtract multiply divide maximum minimum negate abs compare select and or xor "
    "not convert clamp floor ceil sign remainder power".split()
)


def flops(program: Program, *, loops: bool = True) -> float:
    """Operations of a run on one device: products, sums and elementwise arithmetic."""
    return sum(
        (times if loops else 1)
        * sum(_flops(program, name, i) for i in program.computations[name].values())
        for name, times in program.runs()
    )


def products(program: Program) -> dict[str, float]:
    """Operations of the matrix products of a run on one device, by cause."""
    found: dict[str, float] = collections.defaultdict(float)
    for name, times in program.runs():
        for inner, instruction in _with_fused(program, name):
            if instruction.opcode in ("convolution", "dot"):
                found[instruction.cause] += times * _product(
                    program.computations[inner], instruction
                )
    return dict(found)


def _with_fused(program: Program, name: str) -> Iterator[tuple[str, Instruction]]:
    for instruction in program.computations[name].values():
        yield name, instruction
        if instruction.opcode == "fusion":
            yield from _with_fused(program, instruction.called[0])


def _flops(program: Program, name: str, instruction: Instruction) -> float:
    scope = program.computations[name]
    if instruction.opcode == "fusion":
        inner = instruction.called[0]
        return sum(
            _flops(program, inner, i) for i in program.computations[inner].values()
        )
    if instruction.opcode in ("convolution", "dot"):
        return _product(scope, instruction)
    if instruction.opcode in ("reduce", "reduce-window"):
        half = len(instruction.operands) // 2
        return sum(scope[x].size for x in instruction.operands[:half]) - sum(
            array.size for array in instruction.arrays
        )
    return instruction.size if instruction.opcode in ELEMENTWISE else 0


def _product(scope: dict[str, Instruction], product: Instruction) -> float:
    """Two operations a multiplication that meets no padding."""
    left, right = (scope[name].arrays[0].shape for name in product.operands)
    if product.opcode == "dot":
        dims = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", product.text)[0]
        contracted = math.prod(left[int(d)] for d in dims.split(",") if d)
        return 2.0 * product.size * contracted
    (lhs, rhs, out) = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", product.text)[0]
    made = product.arrays[0].shape
    plain = left[lhs.index("f")] * made[out.index("b")] * made[out.index("f")]
    for position in filter(str.isdigit, out):
        axis = int(position)
        plain *= _positions(
            _window(product.text, axis),
            left[lhs.index(position)],
            made[out.index(position)],
        )
    return 2.0 * plain


def _window(text: str, axis: int) -> dict[str, tuple[int, ...]]:
    """Size, stride, pad (low, high), lhs_dilate and rhs_dilate along an axis."""
    found = re.findall(r"window=\{([^}]*)\}", text)
    fields = dict(field.split("=") for field in found[0].split()) if found else {}
    return {
        name: tuple(int(n) for n in value.split("x")[axis].split("_"))
        for name, value in fields.items()
    }


def _positions(window: dict[str, tuple[int, ...]], width: int, made: int) -> int:
    """(kernel element, result) pairs of an axis that meet an element of the input."""
    one, stride, dilate = (1,), window.get("stride", (1,))[0], window.get("lhs_dilate")
    dilate, spread = (dilate or one)[0], window.get("rhs_dilate", one)[0]
    low, met = window.get("pad", (0, 0))[0], 0
    for kernel in range(window.get("size", one)[0]):
        for result in range(made):
            at = result * stride - low + kernel * spread
            met += at % dilate == 0 and 0 <= at < width * dilate
    return met
