"""How fast and how large: fixed workloads, this package's and the peers'.

  python -m experiments.benchmark --model M3 --workload W1 W2
  python -m experiments.benchmark --limits --workload W1
  python -m experiments.benchmark --curves
  python -m experiments.benchmark --peers FOLDER --out results.jsonl

W1 decoding, W2 supervised fine-tuning, W3 reward model, W4 DPO, W5 PPO, W6 GRPO
(`workloads` has their sizes). One JSON line each: the rate at the median time of the
repetitions, after a warm-up that compiles. Run on a machine with nothing else to do.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments import cli, peers
from experiments.benchmark_inputs import MODELS
from experiments.curves import curves, draw
from experiments.limits import (
    decode_products,
    matrix_rate,
    read_rate,
    weight_products,
)
from experiments.peers import Case
from experiments.timing import ForeignCPU, Lines, Report, Workload, alternate, report
from experiments.workloads import DECODE_NEW, DECODE_ROWS, PROMPT, WORKLOADS
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel import Devices, local_devices
from rlhf_jax.terminal import progress

PEER = "rlhf_jax"
INTERLEAVED = 5  # rounds of decoding and its limit, at least


@dataclasses.dataclass(frozen=True)
class Config:
    """Fixed workloads, timed."""

    model: tuple[str, ...] = tuple(MODELS)
    """Sizes: M25 has 33.6 million parameters, M3 3.05 million."""
    workload: tuple[str, ...] = tuple(WORKLOADS)
    """What is timed."""
    beta: tuple[float, ...] = (0.04, 0.0)
    """KL coefficients of W6; without a reference at 0."""
    reps: int = 5
    """Timed iterations of each."""
    warmup: int = 2
    """Iterations before them, which compile."""
    devices: int = 1
    """Devices that share a batch; a CPU is made into this many."""
    out: Path | None = None
    """File that the lines are added to; none prints them only."""
    limits: bool = False
    """Also what the machine allows: the weight products of decoding, in turn with W1,
    and the rates of products and reading."""
    curves: bool = False
    """Decoding against batch, context and slots, and its memory, instead of
    workloads."""
    picture: Path = Path("curves.png")
    """Where the curves are drawn."""
    peers: Path | None = None
    """Folder of the peers' scripts: runs them and this package in turn."""
    envs: Path = Path("~/.cache/rlhf-peers")
    """Folder of the peers' environments."""
    peer_devices: tuple[int, ...] = (1, 2)
    """Numbers of devices that this package is compared with."""
    rounds: int = 5
    """Rounds of the comparison."""
    timeout: float = 480.0
    """Seconds that one run of the comparison may take."""
    quiet: float = 30.0
    """Seconds that it waits at most for other processes to leave the cores alone."""

    def cases(self) -> list[Case]:
        """What is to be run, size after size."""
        betas = lambda workload: self.beta if workload == "W6" else (None,)
        return [
            Case(workload, model, beta)
            for model in self.model
            for workload in self.workload
            for beta in betas(workload)
        ]


def main(config: Config) -> None:
    """Times what is asked for, and writes it down."""
    check(config)
    lines = Lines(config.out)
    if config.peers is not None:
        return compare_peers(config, lines)
    devices = take_devices(config.devices)
    if config.curves:
        return draw_curves(config, devices, lines)
    if config.limits:
        for row in machine_rates(config, devices):
            lines.write(row)
        for model in config.model:
            decode_limit(config, model, devices, lines)
    for case in config.cases():
        if not (config.limits and case.workload == "W1"):  # that is done
            lines.write(time_workload(config, case, MODELS[case.model], devices))


def check(config: Config) -> None:
    """Refuses what there is not, before anything starts.

    Raises:
      UserError: an unknown name, or a number below 1.
    """
    check_names(config.model, config.workload)
    for name in ("reps", "warmup", "devices", "rounds"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} = {getattr(config, name)}: expected 1 or more")


def check_names(models: tuple[str, ...], workloads: tuple[str, ...]) -> None:
    """Refuses sizes and workloads that there are not.

    Raises:
      UserError: the message names the option.
    """
    for option, given, known in (
        ("--model", models, MODELS),
        ("--workload", workloads, WORKLOADS),
    ):
        for name in given:
            if name not in known:
                names = ", ".join(known)
                raise UserError(f"{option} {name}: expected some of {names}")


def take_devices(count: int) -> Devices:
    """The first devices; a CPU is told first how many it is."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # too late: whoever started the backend has said how many
        pass
    return local_devices(count)


def build(case: Case, model: TransformerConfig, devices: Devices) -> Workload:
    """The workload, ready to run."""
    options = {} if case.beta is None else {"beta": case.beta}
    return WORKLOADS[case.workload](model, devices, **options)


def time_workload(
    config: Config, case: Case, model: TransformerConfig, devices: Devices
) -> Report:
    """One workload's line."""
    timed = build(case, model, devices)
    [line] = time_in_turn(config, [(case, timed)], devices, reps=config.reps)
    return line


def time_in_turn(
    config: Config, timed: list[tuple[Case, Workload]], devices: Devices, *, reps: int
) -> list[Report]:
    """The lines of workloads whose iterations alternate."""
    for _, workload in timed:
        for _ in range(config.warmup):
            workload.run()
    foreign = ForeignCPU()
    found = alternate([workload for _, workload in timed], warmup=0, reps=reps)
    more = {"jax": jax.__version__, "devices": len(devices)}
    more["platform"] = devices[0].platform
    return [
        report(
            case.workload,
            case.model,
            PEER,
            workload,
            seconds,
            foreign=foreign,
            **more,
            **({} if case.beta is None else {"beta": case.beta}),
        )
        for (case, workload), seconds in zip(timed, found, strict=True)
    ]


def machine_rates(config: Config, devices: Devices) -> Iterator[Report]:
    """What a product and a read reach at most."""
    for name, make in (("product of 2048³", matrix_rate), ("read of 1 GiB", read_rate)):
        timed = [(Case(name, ""), make())]
        yield from time_in_turn(config, timed, devices[:1], reps=config.reps)


def decode_limit(config: Config, name: str, devices: Devices, lines: Lines) -> None:
    """Products of decoding alone; in turn with W1 if that is asked for."""
    model, case = MODELS[name], Case("W1", name)
    sizes = {"rows": DECODE_ROWS, "prompt": PROMPT, "new": DECODE_NEW}
    products = {
        "W1 weight products alone": weight_products(model, devices, rows=DECODE_ROWS),
        "W1 products alone, of prompts and cache too": decode_products(
            model, devices, **sizes
        ),
    }
    timed = [(Case(label, name), workload) for label, workload in products.items()]
    if "W1" in config.workload:
        timed.append((case, build(case, model, devices)))
    reps = max(config.reps, INTERLEAVED)
    found = time_in_turn(config, timed, devices, reps=reps)
    for line in found:
        lines.write(line)
    for limit, decoded in itertools.product(found[:2], found[2:]):
        share = decoded["value"] / limit["value"]
        print(
            f"W1 {name}: {decoded['value']:,.0f} new tokens/s, {share:.0%} of the "
            f"{limit['value']:,.0f} of: {limit['workload']}"
        )


def draw_curves(config: Config, devices: Devices, lines: Lines) -> None:
    """Every point of the curves, and their picture."""
    models = {name: MODELS[name] for name in config.model}
    found = []
    for line in curves(models, devices, reps=config.reps):
        lines.write(line)
        found.append(line)
        draw(found, config.picture)  # what is there is kept if it is interrupted
    print(config.picture)


def compare_peers(config: Config, lines: Lines) -> None:
    """Runs everything in turn, and prints the table."""
    assert config.peers is not None
    folder, envs = config.peers.expanduser(), config.envs.expanduser()
    peers.check_installed(folder, envs)
    cases = config.cases()

    @functools.cache
    def variants(case: Case) -> list[peers.Variant]:
        return [
            *peers.peer_variants(case, folder.resolve(), envs.resolve(), config.reps),
            *peers.our_variants(case, config.peer_devices, config.reps),
        ]

    total = config.rounds * sum(len(variants(case)) for case in cases)
    found = []
    with progress("peers", total, done=0) as advance:
        runs = peers.compare(
            cases,
            variants,
            rounds=config.rounds,
            timeout=config.timeout,
            quiet=config.quiet,
        )
        for run in runs:
            found.append(run)
            lines.write(run.line())
            advance(
                {"last": float("nan") if run.result is None else run.result["value"]}
            )
    for row in peers.print_comparison(found):
        lines.write(row)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
