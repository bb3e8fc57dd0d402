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
import tempfile
from pathlib import Path

import jax
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments import cli
from experiments.benchmark_inputs import MODELS
from experiments.measure import check_names
from experiments.timing import Lines, Report
from experiments.traces import ELSE, KINDS, NOTHING, read_events, read_paths, spend
from experiments.workloads import WORKLOADS
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import local_devices
from rlhf_jax.terminal import print_table


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
