"""Run directories: where a run keeps its configuration and its results.

A run directory holds ``config.json``, ``metrics.jsonl``, ``timings.jsonl``, checkpoints
and the report. A run of several stages has one sub-directory a stage, each a run
directory of its own.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG_FILE = "config.json"
# Fields that say where a run lies and how it is run, not what it computes.
_NOT_COMPARED = ("run_dir", "resume", "until", "tracking", "devices")


class RunError(UserError):
    """What is wrong with a run directory or a file in it, and what to do: one line."""


def _as_json(path: object) -> str:
    if isinstance(path, Path):
        return str(path)
    raise TypeError(f"{path!r} of type {type(path).__name__}")


def save_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON; a reader never sees half a file. No reference.

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


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    fields = {}
    for key, item in value.items():
        fields |= _flat(item, f"{name}.{key}" if name else key)
    return fields


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    old, new = (
        _flat({k: v for k, v in config.items() if k not in _NOT_COMPARED})
        for config in (old, new)
    )
    show = lambda config, name: (
        json.dumps(config[name]) if name in config else "(absent)"
    )
    return [
        f"{name}: {show(old, name)} → {show(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]


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
    path: str | Path, config: "DataclassInstance", *, resume: bool
) -> Path:
    """Makes a run directory and writes its configuration. No reference.

    With ``resume`` a run that is there already goes on, if its configuration is the
    same (top-level fields named ``run_dir``, ``resume``, ``tracking`` and ``devices``
    aside); where no run is yet, it starts. Without, an existing run is never touched.

    Args:
      path: the directory; parents are made.
      config: a frozen dataclass, nested as you like, of values that JSON knows.
      resume: True to go on with the run that lies there.

    Returns:
      The directory, which can be written and holds ``config.json``.

    Raises:
      RunError: it cannot be written, holds a run or other files, or was started with
        another configuration (naming each field, old → new).

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     lr: float = 3e-6
    >>> run = create_run_dir(tempfile.mkdtemp() + "/toy", Config(), resume=False)
    >>> load_json(run / "config.json")
    {'lr': 3e-06}
    """
    path = Path(path)
    _make_writable(path)
    # Through JSON and back: what is compared is what the file can tell apart.
    fields = dataclasses.asdict(config)
    saved = path / CONFIG_FILE
    others = [p for p in path.iterdir() if p.name != CONFIG_FILE]
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
        return path
    new = json.loads(json.dumps(fields, default=_as_json))
    if changed := _differences(load_json(saved), new):
        raise RunError(
            f"--run-dir {path}: was started with another configuration: "
            f"{'; '.join(changed)}: resume with the old values or choose another "
            f"directory"
        )
    return path
