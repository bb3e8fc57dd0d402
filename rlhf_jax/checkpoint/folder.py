"""The folder in which the checkpoints of a run lie, one sub-folder a step."""

import itertools
import shutil
from pathlib import Path

from rlhf_jax.checkpoint.manifest import MANIFEST

# Names that are no checkpoint: in the making, on the way out, not as they were saved.
SAVING, DELETING, DAMAGED = ".saving-", ".deleting-", ".damaged"


def saved_steps(directory: str | Path) -> list[int]:
    """The steps of a directory that have a checkpoint, ascending. No reference.

    Args:
      directory: where checkpoints lie, or where nothing is.

    Returns:
      Steps; also those of checkpoints that are damaged, which `verify` tells.

    >>> saved_steps("no/such/directory")
    []
    """
    directory = Path(directory)
    if not directory.is_dir():
        return []
    found = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in found if name.isdecimal())


def latest_step(directory: str | Path) -> int | None:
    """The latest complete checkpoint of a directory. No reference.

    Args:
      directory: where checkpoints lie, or where nothing is.

    Returns:
      Its step, or None if there is none.

    >>> latest_step("no/such/directory") is None
    True
    """
    steps = saved_steps(directory)
    complete = (s for s in steps if (Path(directory) / str(s) / MANIFEST).is_file())
    return max(complete, default=None)


def put_aside(directory: Path, step: int) -> Path:
    """Renames a damaged checkpoint; nothing of it is deleted."""
    old = directory / str(step)
    for n in itertools.count(1):
        new = directory / f"{step}{DAMAGED}{'' if n == 1 else f'-{n}'}"
        if not new.exists():
            return old.rename(new)
    raise AssertionError


def put_all_aside(directory: str | Path) -> None:
    """Renames every checkpoint, so that a run may begin anew in the same place.

    No reference. Nothing is deleted but what was left half done.

    Args:
      directory: where checkpoints lie, or where nothing is.

    >>> put_all_aside("no/such/directory")
    """
    clean(Path(directory))
    for step in saved_steps(directory):
        put_aside(Path(directory), step)


def put_aside_before(directory: Path) -> list[str]:
    """Names of the checkpoints that were renamed earlier."""
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if DAMAGED in p.name)


def delete(directory: Path, step: int) -> None:
    """Deletes a checkpoint; a process that dies over it leaves no half of one."""
    shutil.rmtree((directory / str(step)).rename(directory / f"{DELETING}{step}"))


def clean(directory: Path) -> None:
    """Deletes what a process left that died while it saved or deleted."""
    if directory.is_dir():
        for path in directory.iterdir():
            if path.name.startswith((SAVING, DELETING)):
                shutil.rmtree(path)
