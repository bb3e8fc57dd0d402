"""Other packages on the same workloads: their scripts, in their own environments.

A folder has the peers' scripts, which print a JSON line each; a second one has their
environments. Everything runs alone and in turn, round after round, so that a machine
that slows down slows down all of them.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.timing import Case, Report, wait_until_quiet
from rlhf_jax.errors import UserError
from rlhf_jax.terminal import print_table

ROOT = Path(__file__).parents[1]
SCRIPTS = ("common.py", "bench_trl.py", "bench_tunix.py")
TRL, FAST, TUNIX, OURS = "TRL", "TRL, fast MKL", "Tunix", "rlhf_jax"
_FAILED = "failed"


class Variant(NamedTuple):
    """A command that prints one JSON line."""

    group: str  # the column of the table; its best variant is shown
    name: str
    command: list[str]
    env: dict[str, str]
    folder: Path


class Run(NamedTuple):
    """What a command came to: its line, or why there is none."""

    case: Case
    variant: Variant
    round: int
    result: Report | None
    error: str = ""

    def line(self) -> Report:
        """For the file of results."""
        common = {
            "workload": self.case.workload,
            "model": self.case.model,
            "beta": self.case.beta,
            "group": self.variant.group,
            "variant": self.variant.name,
            "round": self.round,
        }
        return common | (self.result or {"error": self.error})


def check_installed(peers: Path, envs: Path) -> None:
    """Says what is missing before anything runs.

    Raises:
      UserError: a script or an environment is not there.
    """
    for script in SCRIPTS:
        if not (peers / script).is_file():
            raise UserError(
                f"--peers {peers}: no {script} there; give the folder of the peers' "
                "scripts"
            )
    for name in ("trl/bin/python", "tunix/bin/python", "trl_ppo", "mkl_amd.so"):
        if not (envs / name).exists():
            raise UserError(
                f"--envs {envs}: no {name} there; install the peers' environments with "
                f"setup.sh in {peers}, or name their folder"
            )


def peer_variants(case: Case, peers: Path, envs: Path, reps: int) -> list[Variant]:
    """Every way to run the peers on a workload.

    TRL twice: as pip installs it, and with the matrix library's AVX-512 kernels, which
    it leaves alone on AMD, turned on.
    """
    size = ["--model", case.model, "--reps", str(reps)]
    beta = [] if case.beta is None else ["--beta", str(case.beta)]
    common = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    common["OMP_NUM_THREADS"] = "2"

    def variant(group: str, script: str, name: str, options: list[str], **env: str):
        python = envs / ("tunix" if group == TUNIX else "trl") / "bin/python"
        command = [str(python), script, *options, *size, *beta]
        return Variant(group, name, command, common | env, peers)

    old = {"PYTHONPATH": str(envs / "trl_ppo")} if case.workload == "W5" else {}
    trl = {"": ["--workload", case.workload]}
    if case.workload == "W1":
        kinds = ("eager", "static", "compile")
        trl = {kind: ["--workload", "W1", "--variant", kind] for kind in kinds}
    elif case.workload == "W2":
        trl["bare loop"] = ["--workload", "W2bare"]
    found = [
        variant(group, "bench_trl.py", name, options, **env, **old)
        for group, env in (
            (TRL, {}),
            (FAST, {"LD_PRELOAD": str(envs / "mkl_amd.so")}),
        )
        for name, options in trl.items()
    ]
    options = ["--workload", case.workload]
    return [*found, variant(TUNIX, "bench_tunix.py", "", options)]


def our_variants(case: Case, devices: Sequence[int], reps: int) -> list[Variant]:
    """This package, once for each number of devices."""
    command = [sys.executable, "-m", "experiments.benchmark"]
    command += ["--model", case.model, "--workload", case.workload, "--reps", str(reps)]
    if case.beta is not None:
        command += ["--beta", str(case.beta)]
    return [
        Variant(f"{OURS} × {n}", "", [*command, "--devices", str(n)], {}, ROOT)
        for n in devices
    ]


def run_variant(case: Case, variant: Variant, round_: int, timeout: float) -> Run:
    """Runs one command; what goes wrong with it becomes its result."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BENCH_OUT")}
    failed = lambda error: Run(case, variant, round_, None, error)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            variant.command,
            cwd=variant.folder,
            env=env | variant.env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,  # so that its own children end with it
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return failed(f"no result within {timeout:g} s; give --timeout more")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        if code != 0:
            return failed(f"exit code {code}: {_last_line(err.read())}")
        result = _result(out)
    if result is None:
        return failed("it printed no JSON line with a value")
    return Run(case, variant, round_, result)


def compare(
    cases: Sequence[Case],
    variants_of: Callable[[Case], list[Variant]],
    *,
    rounds: int,
    timeout: float,
    quiet: float,
) -> Iterator[Run]:
    """All variants of a case in turn, ``rounds`` times, case after case.

    Each waits ``quiet`` seconds at most until other processes leave the cores alone.
    """
    for case in cases:
        variants = variants_of(case)
        for round_ in range(1, rounds + 1):
            for variant in variants:
                wait_until_quiet(quiet)
                yield run_variant(case, variant, round_, timeout)


def summarize(runs: Sequence[Run]) -> list[Report]:
    """A row a case: each variant's median over its rounds, and ours over the best."""
    rows = []
    for case in dict.fromkeys(run.case for run in runs):
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in runs:
            if run.case == case:
                values[run.variant.group, run.variant.name] += _value(run)
        medians = {
            where: statistics.median(found) if found else None
            for where, found in values.items()
        }
        best: dict[str, tuple[float, str] | None] = {}
        for (group, name), median in medians.items():
            found = best.setdefault(group, None)
            if median is not None and (found is None or median > found[0]):
                best[group] = (median, name)
        ours = _highest(v for group, v in best.items() if group.startswith(OURS))
        peer = _highest(v for group, v in best.items() if not group.startswith(OURS))
        units = [r.result["unit"] for r in runs if r.case == case and r.result]
        rows.append(
            {
                "summary": case.label,
                "model": case.model,
                "unit": units[0] if units else "",
                "best": best,
                "medians": {f"{g} {n}".strip(): m for (g, n), m in medians.items()},
                "ratio": None if ours is None or peer is None else ours / peer,
            }
        )
    return rows


def print_comparison(runs: Sequence[Run]) -> list[Report]:
    """Prints the table, and below it what failed; returns the table's rows."""
    rows = summarize(runs)
    groups = list(dict.fromkeys(group for row in rows for group in row["best"]))
    cell = lambda found: _FAILED if found is None else f"{found[0]:,.4g} {found[1]}"
    print_table(
        "Medians over the rounds, of a peer's best variant",
        ["workload", "model", "unit", *groups, "ours / best peer"],
        [
            [
                row["summary"],
                row["model"],
                row["unit"],
                *(cell(row["best"].get(group)) for group in groups),
                "" if row["ratio"] is None else float(row["ratio"]),
            ]
            for row in rows
        ],
    )
    for run in runs:
        if run.result is None:
            name = f"{run.variant.group} {run.variant.name}".strip()
            where = f"{run.case.label} {run.case.model}, round {run.round}"
            print(f"{_FAILED}: {name}, {where}: {run.error}")
    return rows


def _value(run: Run) -> list[float]:
    return [] if run.result is None else [float(run.result["value"])]


def _highest(found: Iterator[tuple[float, str] | None]) -> float | None:
    return max((value[0] for value in found if value is not None), default=None)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing on stderr"


def _result(lines: Iterator[str]) -> Report | None:
    """The last line that is a JSON object with a value."""
    result = None
    for line in lines:
        if line.startswith("{"):
            try:
                read = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(read, dict) and "value" in read:
                result = read
    return result
