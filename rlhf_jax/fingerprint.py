"""Short names of what a run was given, to tell whether it is still the same."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def fingerprint(items: Iterable[Any]) -> str:
    """16 hexadecimal digits of SHA-256 of texts, bytes or plain Python values.

    No reference. Values are told apart by their ``repr``, so arrays, which show only a
    part of themselves, must not be among them.

    >>> fingerprint(["a", (1, 2)]) == fingerprint(["a", (1, 2)])
    True
    >>> fingerprint(["a", (1, 2)]) == fingerprint(["a", (2, 1)])
    False
    """
    total = hashlib.sha256()
    for item in items:
        part = item if isinstance(item, bytes) else repr(item).encode()
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:16]


def files_fingerprint(folder: Path, patterns: Iterable[str]) -> str:
    """Of the files in a folder that match, their names and all of their bytes.

    No reference.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.json").write_text("{}")
    >>> before = files_fingerprint(folder, ["*.json"])
    >>> _ = (folder / "a.json").write_text("[]")
    >>> files_fingerprint(folder, ["*.json"]) == before
    False
    """
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    parts = []
    for path in paths:
        with path.open("rb") as file:
            parts += [path.name, hashlib.file_digest(file, "sha256").hexdigest()]
    return fingerprint(parts)
