"""Rows of data from files and from TensorFlow Datasets, each knowing where it stands.

Nothing is interpreted here: a row is the mapping that the file holds, with its source
and line, so that whatever finds fault with it later can say where to look.
"""

import contextlib
import csv
import difflib
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.errors import UserError

TFDS_PREFIX = "tfds:"


class DataError(UserError):
    """Something is wrong with the data; the message is one line that says where."""


@dataclass(frozen=True)
class Row:
    """One row as its source holds it."""

    values: dict[str, Any]  # column name -> value
    source: str  # path of the file, or "tfds:NAME/CONFIG[SPLIT]"
    line: int  # counted from 1: the line of a text file, the row of anything else

    @property
    def origin(self) -> str:
        """Where the row stands, as error messages name it: ``source:line``."""
        return f"{self.source}:{self.line}"


def read_rows(
    path: str | Path, *, split: str | None = None, data_dir: str | Path | None = None
) -> list[Row]:
    """Reads every row of a file or of a data set's split. No reference.

    Args:
      path: a ``.jsonl``, ``.csv`` or ``.parquet`` file, each plain or with ``.gz``
        after it, in UTF-8 (a byte-order mark at the beginning is allowed); or
        ``"tfds:NAME[/CONFIG]"``, a data set of TensorFlow Datasets, which is built, or
        downloaded by its own recipe, on first use. TensorFlow itself is not needed.
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
    if str(path).startswith(TFDS_PREFIX):
        rows = _read_tfds(str(path), split, data_dir)
    else:
        if split is not None:
            raise DataError(
                f"{path}: a file has no splits, but split={split!r} was asked for; "
                f"leave split out and name one file a split"
            )
        rows = _read_file(Path(path))
    if not rows:
        raise DataError(f"{path}: holds no rows; expected at least one")
    return rows


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
                f"{names}; the columns are {', '.join(row.values)}; change the renaming"
            )
        values = {names.get(old, old): value for old, value in row.values.items()}
        renamed.append(Row(values, row.source, row.line))
    return renamed


def _read_file(path: Path) -> list[Row]:
    kind = path.suffixes[-2:-1] if path.suffix == ".gz" else path.suffixes[-1:]
    if kind not in ([".jsonl"], [".csv"], [".parquet"]):
        raise DataError(
            f"{path}: unknown extension {''.join(path.suffixes[-2:])!r}; expected "
            f".jsonl, .csv or .parquet, plain or with .gz; convert or rename the file"
        )
    content = _content(path)
    if not content:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    if kind == [".jsonl"]:
        rows = _jsonl_rows(content, path)
    elif kind == [".csv"]:
        rows = _csv_rows(content, path)
    else:
        rows = _parquet_rows(content, path)
    return [Row(values, str(path), line) for line, values in rows]


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file{_near_names(path)}") from error
    except OSError as error:  # a folder, no permission, a failing disk
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: not a whole gzip file ({error}); copy or download it again, or "
            f"drop .gz from its name if it is not compressed"
        ) from error


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; nor is there a folder {path.parent}; check the path"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "; check the path"


def _lines(content: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, each with its line end; decoded one by one, so
    that an error can name its line."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at byte "
                f"{error.start + 1} of the line); save the file as UTF-8"
            ) from error


def _jsonl_rows(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(content, path):
        if not line.strip():
            continue
        try:
            values = json.loads(
                line.rstrip("\r\n"),
                object_pairs_hook=_unique_keys,
                parse_constant=_no_constant,
            )
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg}, at character {error.colno}"
            raise DataError(
                f"{path}:{number}: not JSON ({reason}); expected one object a line, "
                f'such as {{"prompt": "…"}}; correct the line'
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"{path}:{number}: expected a JSON object, found "
                f"{type(values).__name__}; write one object with named columns a line"
            )
        yield number, values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


def _csv_rows(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = (line for _, line in _lines(content, path))
    reader = csv.reader(text, strict=True)
    first = 1
    header: list[str] = []
    try:
        for fields in reader:  # a quoted field may go over several lines
            if not header:
                header = _csv_header(fields, path)
            elif fields and len(fields) != len(header):
                raise DataError(
                    f"{path}:{first}: {len(fields)} fields, but the header names "
                    f"{len(header)} columns ({', '.join(header)}); quote fields that "
                    f"hold a comma or a line break"
                )
            elif fields:
                yield first, dict(zip(header, fields, strict=True))
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{first}: not CSV ({error}); correct the quoting of the row"
        ) from error


def _csv_header(fields: list[str], path: Path) -> list[str]:
    if not all(fields) or len(set(fields)) < len(fields):
        raise DataError(
            f"{path}:1: expected a header of distinct column names, found {fields}; "
            f"write the names of the columns into the first line"
        )
    return fields


def _parquet_rows(content: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        yield from enumerate(table.to_pylist(), start=1)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: not a whole Parquet file ({reason}); write or download it again"
        ) from error


def _read_tfds(path: str, split: str | None, data_dir: str | Path | None) -> list[Row]:
    if split is None:
        raise DataError(f"{path}: which split? Give split, such as 'train' or 'test'")
    name = path.removeprefix(TFDS_PREFIX)
    download_config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with _terse_tfds():
            examples = tfds.data_source(
                name,
                split=split,
                data_dir=data_dir,
                builder_kwargs={"file_format": "array_record"},
                download_and_prepare_kwargs={"download_config": download_config},
                try_gcs=False,
            )
    except (ValueError, OSError, ImportError) as error:
        # No such data set, config or split; no network; a package that it needs.
        reason = str(error).partition("\n")[0].partition(" Here are ")[0].rstrip(".")
        raise DataError(
            f"{path}: split {split!r} cannot be read: {reason}; check data set, config "
            f"and split, import the module that defines it, install what is missing"
        ) from error
    source = f"{path}[{split}]"
    return [Row(_plain(values), source, i) for i, values in enumerate(examples, 1)]


@contextlib.contextmanager
def _terse_tfds() -> Iterator[None]:
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
