"""Where the time of a workload's iteration goes, kind of work by kind of work.

  python -m experiments.profile
  python -m experiments.profile --model M3 --workload W2 --picture profile.png

Traces one iteration of a workload of `experiments.benchmark`, after others that
compile, and names each operation by where in the program it came from. Only the CPU
backend's traces are read.
"""

import dataclasses
import glob
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments import cli
from experiments.benchmark import check_names
from experiments.benchmark_inputs import MODELS
from experiments.timing import Lines, Report
from experiments.workloads import WORKLOADS
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import local_devices
from rlhf_jax.terminal import print_table

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


@dataclasses.dataclass(frozen=True)
class Config:
    """Workloads, traced."""

    model: tuple[str, ...] = tuple(MODELS)
    """Sizes: M25 has 33.6 million parameters, M3 3.05 million."""
    workload: tuple[str, ...] = tuple(WORKLOADS)
    """What is traced."""
    warmup: int = 2
    """Iterations before the one that is traced."""
    picture: Path = Path("profile.png")
    """Where the shares are drawn."""
    out: Path | None = None
    """File that the lines are added to; none prints them only."""


class Event(NamedTuple):
    """One run of one operation."""

    start: float  # ns
    end: float
    kind: str


def main(config: Config) -> None:
    """Traces each workload, prints the shares and draws them.

    Raises:
      UserError: a name that there is not, or another backend.
    """
    check_names(config.model, config.workload)
    lines, rows = Lines(config.out), []
    with tempfile.TemporaryDirectory() as programs:
        flags = f"--xla_cpu_enable_xprof_traceme=true --xla_dump_to={programs}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        if jax.default_backend() != "cpu":
            raise UserError("experiments.profile reads traces of the CPU backend only")
        for model in config.model:
            for workload in config.workload:
                row = profile(workload, model, config.warmup, Path(programs))
                lines.write(row)
                rows.append(row)
    show(rows)
    draw(rows, config.picture)


def profile(workload: str, model: str, warmup: int, programs: Path) -> Report:
    """Seconds of each kind of work in one iteration."""
    options = {"beta": 0.04} if workload == "W6" else {}
    run = WORKLOADS[workload](MODELS[model], local_devices(1), **options).run
    for _ in range(warmup):
        run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        [trace] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        events = sorted(read_events(trace, read_paths(programs)))
    whole, seconds = spend(events)
    return {"workload": workload, "model": model, "seconds": whole} | seconds


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


def show(rows: list[Report]) -> None:
    """The table of shares."""
    kinds = [*KINDS, ELSE, NOTHING]
    print_table(
        "Share of an iteration's time",
        ["workload", "model", "seconds", *kinds],
        [
            [
                row["workload"],
                row["model"],
                row["seconds"],
                *(f"{row[kind] / row['seconds']:.0%}" for kind in kinds),
            ]
            for row in rows
        ],
    )


def draw(rows: list[Report], path: Path) -> None:
    """One bar an iteration, cut into its kinds of work."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(10, 1.6 + 0.42 * len(rows)), layout=layout)
    axes = figure.subplots()
    labels = [f"{row['workload']} {row['model']}" for row in rows]
    left = [0.0] * len(rows)
    for number, kind in enumerate([*KINDS, ELSE, NOTHING]):
        shares = [100 * row[kind] / row["seconds"] for row in rows]
        colour = "0.85" if kind == NOTHING else f"C{number}"
        axes.barh(labels, shares, left=left, color=colour, label=kind)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of an iteration's time", fontsize=9)
    axes.tick_params(labelsize=8.5, color="0.7")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
