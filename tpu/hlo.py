"""A compiled program's text (HLO) as instructions, and how often each is run.

The compiler's own cost analysis counts the body of a loop once, however often it runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "f16": 2}  # of others, the digits of the name say it
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Cause, and what an instruction's op_name has of it; the first that fits.
CAUSES: tuple[tuple[str, str], ...] = (
    ("projections of attention", r"/(q|k|v|o)_proj/"),
    ("attention, the rest", r"/attn(/|$)"),
    ("MLP", r"/mlp(/|$)"),
    ("norms", r"_norm(/|$)"),
    ("embedding", r"/embed/"),
    ("stacked layers", r"/trunk/"),
    ("log-probs and readout", r"logprobs|readout"),
    ("optimiser", r"/optimizer(/|$)"),
    ("copies and zeros, no name", r"^(jit\([^)]*\)(/while/body/closed_call)?)?$"),
)
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%?([\w.-]+)")


class Array(NamedTuple):
    """An array's dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        width = BYTES.get(self.dtype)
        return self.size * (width or int(re.sub(r"\D", "", self.dtype)) // 8)


class Instruction(NamedTuple):
    """A line: what it makes, of what, and the rest of its text."""

    name: str
    arrays: tuple[Array, ...]  # the results: several for a tuple
    opcode: str
    operands: tuple[str, ...]  # names
    text: str  # all after the opcode
    root: bool

    @property
    def size(self) -> int:
        """Elements of the results."""
        return sum(array.size for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Of the results."""
        return sum(array.bytes for array in self.arrays)

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs."""
        return tuple(CALLED.findall(self.text))

    @property
    def collective(self) -> str:
        """Its kind, or nothing: "all-reduce" of an "all-reduce-start", too."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""

    @property
    def cause(self) -> str:
        """A collective, or the first of CAUSES that fits its op_name."""
        if self.collective:
            return "collectives"
        found = re.search(r'op_name="([^"]*)"', self.text)
        path = found.group(1) if found else ""
        return next((name for name, part in CAUSES if re.search(part, path)), "rest")


class Program(NamedTuple):
    """Computations by name, each its instructions by name, in order."""

    entry: str
    computations: dict[str, dict[str, Instruction]]

    def runs(self) -> Iterator[tuple[str, int]]:
        """(computation, how often) of the entry and of loops, not of what is fused."""
        waiting = [(self.entry, 1)]
        while waiting:
            name, times = waiting.pop()
            yield name, times
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    often = times * self.trips(instruction)
                    body = re.findall(r"body=%?([\w.-]+)", instruction.text)[0]
                    waiting.append((body, often))
                elif instruction.opcode in ("call", "conditional"):
                    waiting += [(other, times) for other in instruction.called]

    def trips(self, loop: Instruction) -> int:
        """Of a loop whose counter goes from 0 to a constant in steps of 1: a scan's."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)', loop.text)
        if known:
            return int(known.group(1))
        condition = re.findall(r"condition=%?([\w.-]+)", loop.text)[0]
        bounds = [
            int(instruction.text.split(")")[0])
            for instruction in self.computations[condition].values()
            if instruction.opcode == "constant" and instruction.arrays[0].shape == ()
        ]
        if len(bounds) != 1:
            raise ValueError(f"loop {loop.name} with bounds {bounds}: expected one")
        return bounds[0]


def parse(text: str) -> Program:
    """The program of ``compiled.as_text()``.

    >>> program = parse('''
    ... ENTRY %main (x: f32[4]) -> f32[4] {
    ...   %x = f32[4]{0} parameter(0)
    ...   ROOT %y = f32[4]{0} add(%x, %x), metadata={op_name="sum"}
    ... }''')
    >>> [(i.opcode, i.operands, i.bytes) for i in program.computations["main"].values()]
    [('parameter', (), 16), ('add', ('x', 'x'), 16)]
    """
    entry, computations, current = "", {}, {}
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations[header.group(2)] = {}
            entry = header.group(2) if header.group(1) else entry
            continue
        found = INSTRUCTION.match(line)
        if found:
            root, name, made, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.-]+)", rest.split(")", 1)[0])
            arrays = arrays_in(made)
            current[name] = Instruction(
                name, arrays, opcode, tuple(operands), rest, bool(root)
            )
    return Program(entry, computations)


def arrays_in(text: str) -> tuple[Array, ...]:
    """The arrays of a type, or of any text.

    >>> arrays_in("(f32[2,3]{1,0:T(8,128)}, pred[])")
    (Array(dtype='f32', shape=(2, 3)), Array(dtype='pred', shape=()))
    """
    return tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n))
        for dtype, shape in ARRAY.findall(text)
    )
