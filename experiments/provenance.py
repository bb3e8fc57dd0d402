"""Where a run's numbers are from: command, code, machine and time, beside them.

`cli.run` leaves provenance.json in the run directory of a script that has ended well;
`experiments.evidence` makes lines of a page from it.
"""

import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import jax

import rlhf_jax
from rlhf_jax import processes
from rlhf_jax.fingerprint import files_fingerprint
from rlhf_jax.lock import LOCK_FILE
from rlhf_jax.rundir import CONFIG_FILE, RunError, load_json, save_json

PROVENANCE = "provenance.json"
# What a run finds, in its directory and in those of its stages and seeds. Hidden files
# are half written, and may be gone before they are read.
_RESULTS = ("[!.]*.json*", "*/[!.]*.json*", "[!.]*.md")
_PROGRAMS = ("rlhf_jax", "jax", "jaxlib")

Config = TypeVar("Config")


def recorded(main: Callable[[Config], Any], config: Config, *, preset: str) -> None:
    """Runs ``main`` and, if it ends well, says in the run directory how that was.

    A run that is resumed and adds nothing leaves the file as it is, as it leaves its
    results: the seconds of looking at a finished run are not the run's.

    Args:
      main: of a script.
      config: what it is asked; without a ``run_dir`` nothing is written.
      preset: where the options started from.
    """
    run_dir = _run_dir(config)
    if run_dir is None or not processes.is_first():
        main(config)
        return
    before = files_fingerprint(run_dir, _RESULTS)
    found = {
        "script": _script(main),
        "preset": preset,
        "command": _command(_script(main)),
        "commit": commit(),  # now: the code may be edited while it runs
        "resumed": _has_begun(run_dir),
    }
    began, worked = time.perf_counter(), time.process_time()
    returned = main(config)
    found |= {"seconds": round(time.perf_counter() - began, 1)}
    found |= {"cpu_seconds": round(time.process_time() - worked, 1), "ended": _now()}
    found |= _machine(config) | {"returned": _numbers(returned)}
    path = run_dir / PROVENANCE
    added = files_fingerprint(run_dir, _RESULTS) != before
    if _made_by(config, run_dir) and (added or not path.exists()):
        try:
            save_json(path, found)
        except RunError as error:  # the run has ended well, and stays so
            print(f"warning: {error}", file=sys.stderr)


def programs() -> dict[str, str]:
    """Versions of what all processes of a run must have alike."""
    return {name: importlib.metadata.version(name) for name in _PROGRAMS}


def commit() -> str:
    """The commit of the code, with -dirty where it was edited; else its version."""
    root = Path(rlhf_jax.__file__).parents[1]
    if (root / ".git").exists():  # not of a project in whose folder it is installed
        # Without optional locks it is in nobody's way who uses git meanwhile.
        options = ("--no-optional-locks", "-C", str(root))
        asked = ["git", *options, "describe", "--always", "--dirty"]
        try:
            described = subprocess.run(asked, capture_output=True, text=True)
        except FileNotFoundError:
            pass  # no git
        else:
            if described.returncode == 0:
                return described.stdout.strip()
    try:
        return f"version {importlib.metadata.version('rlhf_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "not known"


def _run_dir(config: Any) -> Path | None:
    names = [field.name for field in dataclasses.fields(config)]
    return Path(config.run_dir) if "run_dir" in names else None


def _made_by(config: Any, run_dir: Path) -> bool:
    """Whether the directory is this script's; `experiments.export` reads another's."""
    if not (run_dir / CONFIG_FILE).is_file():
        return False
    names = {field.name for field in dataclasses.fields(config)}
    return load_json(run_dir / CONFIG_FILE).keys() == names


def _has_begun(run_dir: Path) -> bool:
    """Whether an earlier process has left more than the configuration."""
    return any(p.name not in (CONFIG_FILE, LOCK_FILE) for p in run_dir.glob("*"))


def _script(main: Callable) -> str:
    spec = sys.modules["__main__"].__spec__  # of python -m; else there is none
    if main.__module__ == "__main__" and spec is not None:
        return spec.name
    return main.__module__


def _command(script: str) -> str:
    return shlex.join(["python", "-m", script, *sys.argv[1:]])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine(config: Any) -> dict[str, Any]:
    """Cores and devices, and the programs that ran on them."""
    return {
        "cores": _cores(),
        "cpu": _cpu(),
        "devices": _devices(config),
        "processes": processes.count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _cores() -> int | None:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()


def _devices(config: Any) -> dict[str, int]:
    """How many of each kind the run had; none where they cannot be asked."""
    try:
        found = jax.devices()
    except RuntimeError:  # another process has them, and this one needed none
        return {}
    asked = vars(config).get("devices")  # not every script's
    return Counter(device.device_kind for device in found[:asked])


def _numbers(returned: Any) -> dict[str, float | None] | None:
    """What ``main`` has returned, if that is numbers by name; JSON knows no NaN."""
    if not isinstance(returned, dict):
        return None
    if not all(x is None or isinstance(x, Real) for x in returned.values()):
        return None
    number = lambda x: float(x) if x is not None and math.isfinite(x) else None
    return {name: number(x) for name, x in returned.items()}
