"""Run directories: where a run keeps its configuration and its results.

A run directory holds ``config.json``, ``metrics.jsonl``, ``timings.jsonl``, checkpoints
and the report. A run of several stages has one sub-directory a stage, each a run
directory of its own.
"""

import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.errors import UserError
from rlhf_jax.lock import LOCK_FILE, take_lock
from rlhf_jax.processes import by_first, index, is_first

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG_FILE = "config.json"
GIVEN_FILE = "given.json"
CHANGES_FILE = "changes.jsonl"
# Fields that say where a run lies and how it is run, not what it computes.
_NOT_COMPARED = (
    "run_dir",
    "resume",
    "accept",
    "restart",
    "save_every",
    "until",
    "tracking",
    "devices",
    "mesh",
    "guard",
    "stop",
    "reward_timeout",
    "reward_retries",
    "stall",
)


class RunError(UserError):
    """What is wrong with a run directory or a file in it, and what to do: one line."""


def _as_json(path: object) -> str:
    if isinstance(path, Path):
        return str(path)
    raise TypeError(f"{path!r} of type {type(path).__name__}")


def save_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON; a reader never sees half a file. No reference.

    Of several processes the first one writes, here as elsewhere.

    Args:
      path: the file, replaced if it exists.
      value: dicts with string keys, lists, strings, finite numbers, bool, None and
        ``Path`` (written as str).

    Raises:
      RunError: the value has no JSON form, or the file cannot be written.

    >>> directory = Path(tempfile.mkdtemp())
    >>> save_json(directory / "a.json", {"lr": 3e-6})
    >>> load_json(directory / "a.json")
    {'lr': 3e-06}
    """
    path = Path(path)
    try:
        text = json.dumps(value, indent=2, allow_nan=False, default=_as_json)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be written as JSON ({error}): use numbers, strings, "
            f"lists, dicts, None"
        ) from error
    if not is_first():
        return
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({error.strerror}): free space or choose "
            f"another directory"
        ) from error


def load_json(path: str | Path) -> Any:
    """Reads a JSON file. No reference.

    Args:
      path: the file.

    Returns:
      The value.

    Raises:
      RunError: no such file, unreadable, or not JSON (with the line).

    >>> load_json("no/config.json")
    Traceback (most recent call last):
    rlhf_jax.rundir.RunError: no/config.json: no such file: check the path of the run
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file: check the path of the run") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The values of nested dicts, by dotted names. No reference.

    >>> flat({"optim": {"eps": 1e-5}, "seed": 0})
    {'optim.eps': 1e-05, 'seed': 0}
    """
    if not isinstance(value, dict) or not value:
        return {name: value}
    fields = {}
    for key, item in value.items():
        fields |= flat(item, f"{name}.{key}" if name else key)
    return fields


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """What has changed: name -> old and new value."""
    old, new = (
        flat({k: v for k, v in config.items() if k not in _NOT_COMPARED})
        for config in (old, new)
    )
    show = lambda config, name: (
        json.dumps(config[name]) if name in config else "(absent)"
    )
    return {
        name: f"{name}: {show(old, name)} → {show(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    }


def _check_changes(
    path: Path, changed: dict[str, str], accept: Sequence[str], what: str
) -> None:
    """Refuses what was not accepted by name; what was is written down."""
    inside = lambda name: any(f"{name}.".startswith(f"{a}.") for a in accept)
    if refused := [line for name, line in changed.items() if not inside(name)]:
        names = " ".join(name for name in changed if not inside(name))
        raise RunError(
            f"--run-dir {path}: was started with another {what}: "
            f"{'; '.join(refused)}: resume with the old values, choose another "
            f"directory, or say that you mean it: --accept {names}"
        )
    if changed:
        line = {"unix_s": time.time(), "accepted": list(changed.values())}
        with (path / CHANGES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _make_writable(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RunError(
            f"--run-dir {path}: cannot be written ({error.strerror}): choose a "
            f"directory on a disk that you can write to"
        ) from error


def create_run_dir(
    path: str | Path,
    config: "DataclassInstance",
    *,
    resume: bool,
    accept: Sequence[str] = (),
) -> Path:
    """Makes a run directory this process's own and writes its configuration.

    No reference. With ``resume`` a run that is there already goes on, if its
    configuration is the same (top-level fields that do not change what is computed,
    such as ``run_dir``, ``resume``, ``tracking`` and ``devices``, aside); where no run
    is yet, it starts. Without, an existing run is never touched.
    Of several processes the first one does it, and the others wait.

    Args:
      path: the directory, which all processes share; parents are made.
      config: a frozen dataclass, nested as you like, of values that JSON knows.
      resume: True to go on with the run that lies there.
      accept: fields, or groups of fields, that may differ from the run's, such as
        ``optim.learning_rate`` or ``optim``; what did differ is added to
        ``changes.jsonl``, and the new values are the run's from then on.

    Returns:
      The directory, which can be written and holds ``config.json``.

    Raises:
      RunError: it is a bucket's address, cannot be written, holds a run or other files,
        or was started with another configuration (naming each field, old → new).
      LockedError: another process has it (named).

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     lr: float = 3e-6
    >>> run = create_run_dir(tempfile.mkdtemp() + "/toy", Config(), resume=False)
    >>> load_json(run / "config.json")
    {'lr': 3e-06}
    """
    path = Path(path)
    if re.match(r"\w{2,}:/", str(path)):  # gs://bucket, which Path writes gs:/bucket
        raise RunError(
            f"--run-dir {path}: a run's files are appended to and renamed, which a "
            "bucket cannot do: choose a folder, on a share where hosts come and go"
        )
    by_first(lambda: _create(path, config, resume, accept))
    if not (path / CONFIG_FILE).exists():
        raise RunError(
            f"--run-dir {path}: process {index()} does not see what process 0 has "
            "made: choose a directory on a disk that all of them share"
        )
    return path


def _create(
    path: Path, config: "DataclassInstance", resume: bool, accept: Sequence[str]
) -> None:
    _make_writable(path)
    take_lock(path)
    # Through JSON and back: what is compared is what the file can tell apart.
    fields = dataclasses.asdict(config)
    saved = path / CONFIG_FILE
    others = [p for p in path.iterdir() if p.name not in (CONFIG_FILE, LOCK_FILE)]
    if others and not saved.exists():
        raise RunError(
            f"--run-dir {path}: holds files but no {CONFIG_FILE}, so it is no run: "
            f"choose another directory"
        )
    if others and not resume:
        raise RunError(
            f"--run-dir {path}: holds a run already: pass --resume to go on with it, "
            f"or choose another directory"
        )
    if not others:  # nothing was computed here yet
        save_json(saved, fields)
        return
    new = json.loads(json.dumps(fields, default=_as_json))
    changed = _differences(load_json(saved), new)
    _check_changes(path, changed, accept, "configuration")
    if changed:
        save_json(saved, fields)


def check_given(
    run_dir: str | Path, given: Mapping[str, str], *, accept: Sequence[str] = ()
) -> None:
    """Refuses to go on with a run on other data, tokenizer or earlier stages.

    No reference. Paths in a configuration say where something lies; this is about what
    lies there. The first time it is written to ``given.json``.

    Args:
      run_dir: as `create_run_dir` made it.
      given: name -> fingerprint.
      accept: names that may differ; see `create_run_dir`.

    Raises:
      RunError: something is not what the run began with (naming it, old → new).

    >>> run = Path(tempfile.mkdtemp())
    >>> check_given(run, {"data": "12ab"})
    >>> check_given(run, {"data": "12ab"})
    >>> check_given(run, {"data": "9f00"})
    Traceback (most recent call last):
    rlhf_jax.rundir.RunError: --run-dir ...: was started with another input: data: ...
    """
    path, new = Path(run_dir), dict(given)
    changed = {}
    if (path / GIVEN_FILE).exists():
        changed = _differences(load_json(path / GIVEN_FILE), new)
        _check_changes(path, changed, accept, "input")
    if changed or not (path / GIVEN_FILE).exists():
        save_json(path / GIVEN_FILE, new)


def config_texts(config: "DataclassInstance") -> dict[str, str]:
    """A configuration as text, field by field, for processes to compare.

    No reference. Where the run lies on each host and who watches it is left out.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     lr: float = 3e-6
    ...     layers: tuple[int, ...] = (1, 2)
    >>> config_texts(Config())
    {'lr': '3e-06', 'layers': '[1, 2]'}
    """
    fields = flat(dataclasses.asdict(config))
    return {
        name: json.dumps(value, default=_as_json)
        for name, value in fields.items()
        if name.split(".")[0] not in ("run_dir", "tracking")
    }
