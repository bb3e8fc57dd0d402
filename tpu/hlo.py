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
MOVES = set(
    "parameter constant tuple get-tuple-element bitcast copy conditional".split()
)
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\](\{[^}]*\})?")
ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # of a layout: not in the chip's main memory
INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%?([\w.-]+)")


class Array(NamedTuple):
    """An array's dtype and shape."""

    dtype: str
    shape: tuple[int, ...]
    weightless: bool = False  # its bytes do not count

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        if self.weightless:
            return 0
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
    def branches(self) -> tuple[str, ...]:
        """Names of the computations of which a condition runs one."""
        listed = re.findall(r"branch_computations=\{([^}]*)\}", self.text)
        named = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", self.text)
        return tuple(re.findall(r"[\w.-]+", "".join(listed))) + tuple(named)

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
        """(computation, how often) of the entry and of loops, not of what is fused.

        Of the branches of a condition, the one with the larger matrix products, or
        else with more arithmetic.
        """
        waiting = [(self.entry, 1)]
        while waiting:
            name, times = waiting.pop()
            yield name, times
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    often = times * self.trips(instruction)
                    body = re.findall(r"body=%?([\w.-]+)", instruction.text)[0]
                    waiting.append((body, often))
                elif instruction.opcode == "conditional":
                    waiting.append((max(instruction.branches, key=self._made), times))
                elif instruction.opcode == "call":
                    waiting += [(other, times) for other in instruction.called]

    def collectives(
        self, name: str
    ) -> Iterator[tuple[dict[str, Instruction], Instruction]]:
        """(scope, collective) of a computation, and of fusions that begin one there.

        Other fusions carry on with it, or wait for its end, and name it once more.
        """
        for instruction in self.computations[name].values():
            if instruction.collective:
                yield self.computations[name], instruction
            if instruction.name.startswith("async-collective-start"):
                for fused in instruction.called:
                    yield from self.collectives(fused)

    def _made(self, name: str) -> tuple[int, int]:
        """Elements that a computation makes: by matrix products, and by arithmetic."""
        products = others = 0
        for instruction in self.computations[name].values():
            if instruction.opcode in ("convolution", "dot"):
                products += instruction.size
            elif instruction.opcode in ("fusion", "while", "call"):
                for called in instruction.called:
                    within = self._made(called)
                    products, others = products + within[0], others + within[1]
            elif instruction.opcode not in MOVES:
                others += instruction.size
        return products, others

    def trips(self, loop: Instruction) -> int:
        """Of a loop whose counter goes from 0 to a constant in even steps: a scan's.

        A loop that may end before, such as that over the tokens of responses, counts
        with all of its turns.
        """
        known = re.search(r'known_trip_count":\{"n":"(\d+)', loop.text)
        if known:
            return int(known.group(1))
        condition = re.findall(r"condition=%?([\w.-]+)", loop.text)[0]
        bounds = [
            int(instruction.text.split(")")[0])
            for instruction in self.computations[condition].values()
            if instruction.opcode == "constant" and _is_count(instruction)
        ]
        if len(bounds) != 1:
            raise ValueError(f"loop {loop.name} with bounds {bounds}: expected one")
        return -(-bounds[0] // self._step(loop, condition))

    def _step(self, loop: Instruction, condition: str) -> int:
        """What a turn adds to the counter; 1 unless the loop says so plainly."""
        scope = self.computations[condition]
        root = next(i for i in scope.values() if i.root)
        counters = [_element(scope[name]) for name in root.operands if name in scope]
        body = self.computations[re.findall(r"body=%?([\w.-]+)", loop.text)[0]]
        result = next(i for i in body.values() if i.root)
        for at in (at for at in counters if at is not None):
            new = body[result.operands[at]]
            added = [body[x] for x in new.operands if body[x].opcode == "constant"]
            if new.opcode == "add" and len(added) == 1:
                return int(added[0].text.split(")")[0])
        return 1


def _is_count(instruction: Instruction) -> bool:
    (array,) = instruction.arrays
    return array.shape == () and array.dtype in ("s32", "u32")


def _element(instruction: Instruction) -> int | None:
    """Which element of a tuple it is."""
    found = re.search(r"index=(\d+)", instruction.text)
    return int(found.group(1)) if found else None


def parse(text: str, *, on_chip: bool = True) -> Program:
    """The program of ``compiled.as_text()``.

    Without ``on_chip`` arrays that lie in a TPU's vector memory have no bytes, so that
    `traffic` is that of its main memory.

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
            arrays = arrays_in(made, on_chip=on_chip)
            current[name] = Instruction(
                name, arrays, opcode, tuple(operands), rest, bool(root)
            )
    return Program(entry, computations)


def arrays_in(text: str, *, on_chip: bool = True) -> tuple[Array, ...]:
    """The arrays of a type, or of any text; see `parse`.

    >>> [(a.shape, a.bytes) for a in arrays_in("(f32[2,3]{1,0:T(8,128)S(1)}, pred[])")]
    [((2, 3), 24), ((), 1)]
    >>> [a.bytes for a in arrays_in("f32[2,3]{1,0:T(8,128)S(1)}", on_chip=False)]
    [0]
    """
    return tuple(
        Array(
            dtype,
            tuple(int(n) for n in shape.split(",") if n),
            weightless=not on_chip and bool(ON_CHIP.search(layout)),
        )
        for dtype, shape, layout in ARRAY.findall(text)
    )
