"""What a checkpoint must be made of: a hash of each file, and of the list itself."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError

MANIFEST = "manifest.json"
_VERSION = 1


class CheckpointError(UserError):
    """What is wrong with a checkpoint and what to do about it."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are not those that were saved."""


class NoneSoundError(CheckpointError):
    """There are checkpoints, and each is damaged."""


class Manifest(NamedTuple):
    """What ``manifest.json`` says."""

    step: int
    host_state: dict[str, Any]  # as it was given to ``save``
    leaves: dict[str, str]  # path in the pytree -> dtype and shape, float32[4, 3]
    keys: dict[str, str]  # path of a PRNG key -> its kind
    files: dict[str, tuple[int, str]]  # relative name -> bytes, SHA-256
    unix_s: float  # when it was saved
    digest: str  # SHA-256 of all the above


def write_manifest(
    folder: Path,
    *,
    step: int,
    host_state: dict[str, Any],
    leaves: dict[str, str],
    keys: dict[str, str],
    unix_s: float,
) -> None:
    """Hashes the files of a folder, and writes their list beside them."""
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    values = {
        "version": _VERSION,
        "step": step,
        "unix_s": unix_s,
        "host_state": host_state,
        "keys": keys,
        "leaves": leaves,
        "files": {
            name.as_posix(): [(folder / name).stat().st_size, _sha256(folder / name)]
            for name in names
        },
    }
    text = json.dumps(values | {"sha256": _digest(values)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: str | Path, step: int) -> Manifest:
    """What a checkpoint holds, without reading its arrays. No reference.

    Args:
      directory: where the checkpoints of one run lie.
      step: which one.

    Returns:
      The manifest, which is as it was written.

    Raises:
      DamagedError: there is none, or it has changed since.

    >>> read_manifest("no/run", 3)
    Traceback (most recent call last):
    rlhf_jax.checkpoint.manifest.DamagedError: no/run, step 3: manifest.json: ...
    """
    path = Path(directory) / str(step) / MANIFEST
    where = f"{directory}, step {step}: {MANIFEST}"
    try:
        values = json.loads(path.read_bytes())
        digest = values.pop("sha256")
    except FileNotFoundError as error:
        raise DamagedError(
            f"{where}: is missing: the folder was copied in part, or saved by a "
            "version before 0.2"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{where}: cannot be read ({error})") from error
    if digest != _digest(values):
        raise DamagedError(f"{where}: expected SHA-256 {digest}, found another")
    if values.pop("version") != _VERSION or values["step"] != step:
        raise DamagedError(f"{where}: is not the list of step {step}")
    files = {name: (size, sha) for name, (size, sha) in values.pop("files").items()}
    return Manifest(**values, files=files, digest=digest)


def verify(directory: str | Path, step: int) -> Manifest:
    """Reads every file of a checkpoint and compares it with its hash. No reference.

    Args:
      directory: where the checkpoints of one run lie.
      step: which one.

    Returns:
      Its manifest.

    Raises:
      DamagedError: a file is missing, has another length or another hash: names it,
        with what was expected and found.

    >>> verify("no/run", 3)
    Traceback (most recent call last):
    rlhf_jax.checkpoint.manifest.DamagedError: no/run, step 3: manifest.json: ...
    """
    manifest = read_manifest(directory, step)
    folder = Path(directory) / str(step)
    for name, (size, sha) in manifest.files.items():
        where = f"{directory}, step {step}: {name}"
        try:
            found = (folder / name).stat().st_size
            if found != size:
                raise DamagedError(
                    f"{where}: expected {size:,} bytes, found {found:,}: it was cut "
                    "or copied in part"
                )
            other = _sha256(folder / name)
        except OSError as error:
            raise DamagedError(
                f"{where}: expected {size:,} bytes, found none ({error.strerror})"
            ) from error
        if other != sha:
            raise DamagedError(
                f"{where}: expected SHA-256 {sha[:12]}…, found {other[:12]}…: its "
                "bytes have changed"
            )
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
