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
from pathlib import Path

from experiments import cli, peers
from experiments.benchmark_inputs import MODELS
from experiments.curves import curves, draw
from experiments.limits import decode_limits, machine_rates
from experiments.measure import check_names, take_devices, time_workload
from experiments.timing import Case, Lines
from experiments.workloads import WORKLOADS
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import Devices
from rlhf_jax.terminal import progress


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
        show_limits(config, devices, lines)
    counts = {"warmup": config.warmup, "reps": config.reps}
    for case in config.cases():
        if not (config.limits and case.workload == "W1"):  # that is done
            model = MODELS[case.model]
            lines.write(time_workload(case, model, devices, **counts))


def check(config: Config) -> None:
    """Refuses what there is not, before anything starts.

    Raises:
      UserError: an unknown name, or a number below 1.
    """
    check_names(config.model, config.workload)
    for name in ("reps", "warmup", "devices", "rounds"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} = {getattr(config, name)}: expected 1 or more")


def show_limits(config: Config, devices: Devices, lines: Lines) -> None:
    """The machine's rates, and how near to its limit decoding comes."""
    counts = {"warmup": config.warmup, "reps": config.reps}
    for row in machine_rates(devices, **counts):
        lines.write(row)
    for name in config.model:
        beside = "W1" in config.workload
        found = decode_limits(name, devices, beside=beside, **counts)
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
