"""Rows of data from files and from TensorFlow Datasets, each knowing where it stands.

Nothing is interpreted here: a row is the mapping that the file holds, with its source
and line, so that whatever finds fault with it later can say where to look.
"""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.columns import column_names
from rlhf_jax.data.files import scan_file
from rlhf_jax.data.row import DataError, Fault, Row

TFDS_PREFIX = "tfds:"


def read_rows(
    path: str | Path, *, split: str | None = None, data_dir: str | Path | None = None
) -> list[Row]:
    """Reads every row of a file or of a data set's split. No reference.

    Args:
      path: a ``.jsonl``, ``.json`` (a list of objects, or JSONL), ``.csv`` or
        ``.parquet`` file, each plain or with ``.gz`` after it, in UTF-8 (a byte-order
        mark at the beginning is allowed); or ``"tfds:NAME[/CONFIG]"``, a data set of
        TensorFlow Datasets, which is built, or downloaded by its own recipe, on first
        use. TensorFlow itself is not needed.
      split: the split of a data set, such as ``"train"`` or ``"train[:10%]"``; a file
        has none.
      data_dir: where data sets are built; None is TensorFlow Datasets' own default.

    Returns:
      The rows in the order of the source. Text is str, arrays are lists, numbers are
      Python's; CSV knows text only. Blank lines of text files hold no row.

    Raises:
      DataError: the source is missing, unreadable, empty or of an unknown kind, or a
        line of it is malformed. The message names file, line and remedy.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "rows.jsonl")
    ...     _ = path.write_text('{"prompt": "2 + 2 ="}\\n{"prompt": "3 + 3 ="}\\n')
    ...     [(row.line, row.values) for row in read_rows(path)]
    [(1, {'prompt': '2 + 2 ='}), (2, {'prompt': '3 + 3 ='})]
    """
    rows = []
    for row in scan_rows(path, split=split, data_dir=data_dir):
        if isinstance(row, Fault):
            raise DataError(f"{row.origin}: {row.reason}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows; expected at least one")
    return rows


def scan_rows(
    path: str | Path, *, split: str | None = None, data_dir: str | Path | None = None
) -> Iterator[Row | Fault]:
    """Every row of a file or of a data set's split, and every fault. No reference.

    Args:
      path, split, data_dir: as ``read_rows`` takes them.

    Yields:
      In the order of the source a row, or a fault where a line is malformed.

    Raises:
      DataError: the source is missing, unreadable or of an unknown kind, or nothing
        after some point of it can be told apart.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "rows.jsonl")
    ...     _ = path.write_text('{"prompt": "2 + 2 =\\n{"prompt": "3 + 3 ="}\\n')
    ...     [type(row).__name__ for row in scan_rows(path)]
    ['Fault', 'Row']
    """
    if str(path).startswith(TFDS_PREFIX):
        return _tfds_rows(str(path), split, data_dir)
    if split is not None:
        raise DataError(
            f"{path}: a file has no splits, but split={split!r} was asked for; "
            f"leave split out and name one file a split"
        )
    return scan_file(Path(path))


def rename_columns(rows: list[Row], names: dict[str, str]) -> list[Row]:
    """The rows with columns under other names. No reference.

    Args:
      rows: rows as ``read_rows`` gives them.
      names: ``{name in the rows: name wanted}``.

    Returns:
      New rows; columns that ``names`` leaves out keep their names.

    Raises:
      DataError: a row lacks a column, or already has one of the wanted name.

    >>> row = Row({"question": "2 + 2 =", "answer": "4"}, "sums.jsonl", 1)
    >>> rename_columns([row], {"question": "prompt", "answer": "completion"})[0].values
    {'prompt': '2 + 2 =', 'completion': '4'}
    """
    renamed = []
    for row in rows:
        missing = [old for old in names if old not in row.values]
        taken = [new for new in names.values() if new in row.values.keys() - names]
        if missing or taken:
            problem = "no column" if missing else "there already is a column"
            raise DataError(
                f"{row.origin}: {problem} {(missing or taken)[0]!r} for the renaming "
                f"{names}; the columns are {column_names(row)}; change the renaming"
            )
        values = {names.get(old, old): value for old, value in row.values.items()}
        renamed.append(dataclasses.replace(row, values=values))
    return renamed


def _tfds_rows(
    path: str, split: str | None, data_dir: str | Path | None
) -> Iterator[Row | Fault]:
    if split is None:
        raise DataError(f"{path}: which split? Give split, such as 'train' or 'test'")
    name = path.removeprefix(TFDS_PREFIX)
    download_config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with terse_tfds():
            examples = tfds.data_source(
                name,
                split=split,
                data_dir=data_dir,
                builder_kwargs={"file_format": "array_record"},
                download_and_prepare_kwargs={"download_config": download_config},
                try_gcs=False,
            )
    except (ValueError, OSError, ImportError, AssertionError) as error:
        # No such data set, config or split; no network; a package that it needs; no
        # files where the data set is built from a user's own.
        reason = str(error).partition("\n")[0].partition(" Here are ")[0].rstrip(".:")
        raise DataError(
            f"{path}: split {split!r} cannot be read: {reason}; check data set, config "
            f"and split, import the module that defines it, install what is missing"
        ) from error
    source = f"{path}[{split}]"
    for number, values in enumerate(examples, 1):
        try:
            yield Row(_plain(values), source, number)
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 ({error.reason}); build the data set from UTF-8"
            yield Fault(f"{source}:{number}", reason, repr(values))


@contextlib.contextmanager
def terse_tfds() -> Iterator[None]:
    """Keeps a build's bars for terminals, and its announcements to itself."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _plain(value: Any) -> Any:
    """Bytes as text, NumPy's arrays and scalars as Python's lists and numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
