"""What a trace of the CPU backend says: the seconds of each kind of work."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

# The first whose pattern is found in an operation's program and path.
KINDS = {
    "decoding": r"^sample_step .*while",
    "attention": r"attn/(?!.*_proj)",
    "products of weights": r"_proj/.*dot_general|logprobs.*dot_general|product",
    "log-probs": r"logprobs",
    "optimizer": r"optimizer",
    "activations and norms": r"mlp|norm",
}
ELSE, NOTHING = "other", "waiting, Python, transfers"


class Event(NamedTuple):
    """One run of one operation."""

    start: float  # ns
    end: float
    kind: str


def read_paths(programs: Path) -> dict[tuple[str, str], str]:
    """(program, operation) -> its path in the program that was written."""
    paths = {}
    for file in sorted(programs.glob("*after_optimizations.txt")):
        text = file.read_text()
        program = text.split(",", 1)[0].removeprefix("HloModule ")
        for name, rest in re.findall(r"%([\w.\-]+) = (.*)", text):
            path = re.search(r'op_name="([^"]*)"', rest)
            product = " product" if name.startswith("dot") else ""
            paths[program, name] = (path.group(1) if path else "") + product
    return paths


def read_events(trace: str, paths: dict[tuple[str, str], str]) -> Iterator[Event]:
    """All operations that ran, but loops, whose bodies are there themselves."""
    for plane in jax.profiler.ProfileData.from_file(trace).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" not in stats or event.name.startswith(("while", "call")):
                    continue
                program = str(stats["hlo_module"])
                path = paths.get((program, event.name), "")
                kind = kind_of(f"{program.removeprefix('jit_')} {path}")
                yield Event(event.start_ns, event.end_ns, kind)


def kind_of(path: str) -> str:
    """The kind of work of an operation.

    >>> kind_of("sft_step jvp(CausalLM)/trunk/blocks/mlp/up_proj/dot_general")
    'products of weights'
    >>> kind_of("sft_step jit(main)/optimizer/mul")
    'optimizer'
    """
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, path))
    return next(found, ELSE)


def spend(events: list[Event]) -> tuple[float, dict[str, float]]:
    """(seconds in all, seconds of each kind); what runs at a time shares the time.

    The products of weights' gradients run on threads that are not traced: what follows
    one while nothing is traced is counted as theirs.

    >>> events = [Event(0, 2e9, "attention"), Event(1e9, 4e9, "optimizer")]
    >>> whole, seconds = spend(events)
    >>> whole, seconds["attention"], seconds["optimizer"]
    (4.0, 1.5, 2.5)
    """
    products = "products of weights"
    edges = sorted(
        [(e.start, 1, e.kind) for e in events] + [(e.end, 0, e.kind) for e in events]
    )
    running: Counter[str] = Counter()
    spent: dict[str, float] = dict.fromkeys([*KINDS, ELSE, NOTHING], 0.0)
    last, before = edges[0][0], NOTHING
    for time, starts, kind in edges:
        total = running.total()
        if not total:
            spent[products if before == products else NOTHING] += time - last
        for each, count in running.items():
            spent[each] += (time - last) * count / total if total else 0
        running[kind] += 1 if starts else -1
        before, last = kind, time
    return (last - edges[0][0]) / 1e9, {k: round(t / 1e9, 4) for k, t in spent.items()}
