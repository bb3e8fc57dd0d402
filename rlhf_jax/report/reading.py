"""What a run left, as far as a page shows it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.guards import FAULTS_FILE
from rlhf_jax.report.curves import Curves, metrics_files, read_curves
from rlhf_jax.rundir import CONFIG_FILE, RunError, flat, load_json

# Where a run lies and how it goes on, which its results do not depend on.
_NOT_SHOWN = ("run_dir", "resume", "accept", "restart")


class Run(NamedTuple):
    """What a run left; of its stages by their names, its own under the empty one."""

    name: str
    path: Path
    curves: Curves
    summaries: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    calibrations: dict[str, dict[str, Any]]
    quarantined: dict[str, list[dict[str, Any]]]
    faults: dict[str, list[dict[str, Any]]]
    alarms: dict[str, list[dict[str, Any]]]
    made: dict[str, dict[str, Any]]  # how: command, code, time, machine
    options: dict[str, Any]  # of all stages, by dotted names


def read_runs(run_dirs: Sequence[str | Path]) -> list[Run]:
    """Reads what runs left in their directories, and one directory below.

    Raises:
      RunError: a directory is named twice or holds nothing to show, or a file in it is
        not what it should be.
    """
    paths = [Path(run_dir) for run_dir in run_dirs]
    whole = [path.resolve() for path in paths]
    if twice := [
        path for path, p in zip(paths, whole, strict=True) if whole.count(p) > 1
    ]:
        raise RunError(f"{twice[0]}: is named twice: name each run once")
    return [_read(path, name) for path, name in zip(paths, _names(whole), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """As little of the ends of the paths as tells them apart."""
    most = max(len(path.parts) for path in paths)
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read(path: Path, name: str) -> Run:
    each = lambda file, read: {s: read(p) for s, p in _files(path, file).items()}
    summaries = each("summary.json", load_json)
    if "" in summaries:  # it says what is to be said of the stages, too
        summaries = {"": summaries[""]}
    found = {
        "summaries": {s: x for s, x in summaries.items() if isinstance(x, dict)},
        "samples": each("samples.jsonl", _read_lines),
        "calibrations": each("calibration.json", load_json),
        "quarantined": each("quarantine.jsonl", _read_lines),
        "faults": each(FAULTS_FILE, _read_lines),
        "alarms": each("alarms.jsonl", _read_lines),
    }
    curves: Curves = {}
    if metrics_files(path) or not any(found.values()):
        curves = read_curves(path)  # which says what is missing
    made = each("provenance.json", load_json)
    return Run(name, path, curves, **found, made=made, options=_options(path))


def _files(path: Path, name: str) -> dict[str, Path]:
    """A run's file of this name, and those one directory below, by their stage."""
    files = [path / name, *sorted(path.glob(f"*/{name}"))]
    stages = ["" if file.parent == path else file.parent.name for file in files]
    return {s: f for s, f in zip(stages, files, strict=True) if f.is_file()}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line without its end does not count."""
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path}:{number}: not JSON: {line[:60]!r}") from error
        if not isinstance(row, dict):
            raise RunError(f"{path}:{number}: expected a mapping, found {line[:60]!r}")
        rows.append(row)
    return rows


def _options(path: Path) -> dict[str, Any]:
    """The configurations of a run and its stages, by dotted names."""
    options = {}
    for stage, file in _files(path, CONFIG_FILE).items():
        config = load_json(file)
        if not isinstance(config, Mapping):
            raise RunError(f"{file}: expected a mapping of options")
        kept = {k: v for k, v in config.items() if k not in _NOT_SHOWN}
        options |= flat({stage: kept} if stage else kept)
    return options
