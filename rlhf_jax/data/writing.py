"""Rows to JSONL, the file that every reader here reads again."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.data.row import DataError


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    default: Callable[[Any], Any] | None = None,
) -> None:
    """Writes rows as JSONL, one a line; nobody sees half a file. No reference.

    Args:
      rows: columns with their values, of which JSON knows all.
      path: the file, replaced if it is there; its folder must be.
      default: makes a value that JSON does not know into one that it does.

    Raises:
      DataError: the file cannot be written; what was there before still is.
      TypeError: a value that JSON does not know, without ``default``; the same holds.

    >>> import tempfile
    >>> from rlhf_jax.data.sources import read_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_rows([{"prompt": "2 + 2 ="}], Path(folder, "sums.jsonl"))
    ...     [row] = read_rows(Path(folder, "sums.jsonl"))
    >>> row.values
    {'prompt': '2 + 2 ='}
    """
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    line = functools.partial(json.dumps, ensure_ascii=False, default=default)
    try:
        # A lone surrogate is escaped, \\ud83d, which JSON reads as the same.
        with open(half, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(line(row) + "\n" for row in rows)
        half.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}): free space or choose "
            f"another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is there if something went wrong
            half.unlink()
