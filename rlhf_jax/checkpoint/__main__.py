"""Looks at the checkpoints of a run, of all its stages.

python -m rlhf_jax.checkpoint list runs/ppo
python -m rlhf_jax.checkpoint inspect runs/ppo
python -m rlhf_jax.checkpoint verify runs/ppo
"""

import datetime
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from rlhf_jax.checkpoint.folder import put_aside_before, saved_steps
from rlhf_jax.checkpoint.manifest import (
    CheckpointError,
    DamagedError,
    Manifest,
    read_manifest,
    verify,
)
from rlhf_jax.errors import UserError
from rlhf_jax.terminal import print_table

Run = Annotated[Path, tyro.conf.Positional]


def show_list(run: Run) -> int:
    """Lists checkpoints: step, when, size. Nothing is hashed."""
    return _table(run, read_manifest, "saved")


def show_verify(run: Run) -> int:
    """Hashes every file of every checkpoint; exit code 1 where one is damaged."""
    return _table(run, verify, "sound")


def show_inspect(run: Run, step: int | None = None) -> int:
    """Shows what a checkpoint holds: leaves, host state, files.

    Args:
      run: a run directory or its checkpoints.
      step: which checkpoint; none is the latest.
    """
    for directory in _directories(run):
        latest = max(saved_steps(directory))
        manifest = read_manifest(directory, latest if step is None else step)
        print(f"{directory}, step {manifest.step}, {_when(manifest)}")
        rows = [
            (name, what, f"{_items(what):,}") for name, what in manifest.leaves.items()
        ]
        total = sum(_items(what) for what in manifest.leaves.values())
        print_table(
            f"{len(rows)} leaves, {_size(manifest)}",
            ["leaf", "dtype and shape", "numbers"],
            [*rows, ("all", "", f"{total:,}")],
        )
        print("host state:", json.dumps(manifest.host_state, indent=2))
    return 0


def _table(run: Path, read: Callable[[Path, int], Manifest], good: str) -> int:
    rows, damaged = [], 0
    for directory in _directories(run):
        for step in saved_steps(directory):
            try:
                manifest = read(directory, step)
                facts = (_when(manifest), _size(manifest), good)
            except DamagedError as error:
                damaged += 1
                facts = ("", "", str(error).removeprefix(f"{directory}, step {step}: "))
            rows.append((str(directory), str(step), *facts))
        rows += [
            (str(directory), name, "", "", "put aside")
            for name in put_aside_before(directory)
        ]
    print_table(str(run), ["checkpoints", "step", "when", "size", "state"], rows)
    return 1 if damaged else 0


def _directories(run: Path) -> list[Path]:
    """The folders at or below a path that hold checkpoints."""
    below = [run, *(p for p in sorted(run.rglob("checkpoints")) if p.is_dir())]
    found = [p for p in below if saved_steps(p) or put_aside_before(p)]
    if not found:
        raise CheckpointError(f"{run}: no checkpoint here or below: check the path")
    return found


def _when(manifest: Manifest) -> str:
    return f"{datetime.datetime.fromtimestamp(manifest.unix_s):%Y-%m-%d %H:%M:%S}"


def _size(manifest: Manifest) -> str:
    return f"{sum(size for size, _ in manifest.files.values()) / 1e6:,.1f} MB"


def _items(what: str) -> int:
    """Of "float32[4, 3]", 12."""
    return math.prod(json.loads(what[what.rindex("[") :]))


COMMANDS: dict[str, Callable[..., int]] = {
    "list": show_list,
    "inspect": show_inspect,
    "verify": show_verify,
}

if __name__ == "__main__":
    try:
        sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
