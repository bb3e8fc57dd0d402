"""Reading that goes on: good rows become records, the others are kept with reasons."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.formats import FORMATS, Record, detect_format, record_values
from rlhf_jax.data.records import content
from rlhf_jax.data.row import DataError, Fault, Row
from rlhf_jax.data.sources import rename_columns, scan_rows
from rlhf_jax.data.writing import write_rows

LARGEST_ROW = 4 * 2**20  # characters: more is no example but a file gone wrong
_LOOKED_AT = 1000  # rows from which a file's format is told


class Records(NamedTuple):
    """What a source holds."""

    records: list[Any]  # Record; in the order of the source, of some rows several
    quarantined: list[Fault]  # rows that could not be used
    num_rows: int  # rows read: those used and those quarantined
    format: str  # a name in FORMATS


def read_records(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    data_dir: str | Path | None = None,
) -> Records:
    """Reads records of any known format, and puts aside the rows that are none.

    No reference. ``read_rows`` and ``preferences`` and its kin are strict instead: they
    stop at the first fault.

    Args:
      path: as ``read_rows`` takes it.
      format: a name in ``FORMATS``; None tells it from the columns that most of the
        first rows have. All rows are read in this one.
      columns: names to change first, as ``rename_columns`` takes them.
      split: the split of a data set, as ``read_rows`` takes it.
      data_dir: where data sets are built.

    Returns:
      Records and faults, each with ``source:line``; every row is in one of them.

    Raises:
      DataError: the source as a whole cannot be read, or no format is known by that
        name or has such columns.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "sums.jsonl")
    ...     _ = path.write_text('{"prompt": "2 + 2 ="}\\n{"prompt": 3}\\n')
    ...     read = read_records(path)
    >>> read.format, read.records[0].prompt, read.num_rows
    ('prompt', '2 + 2 =', 2)
    >>> read.quarantined[0].reason.partition(";")[0]
    "column 'prompt': expected text that is not empty, found 3"
    """
    if format is not None and format not in FORMATS:
        raise DataError(
            f"{path}: no format {format!r}; expected one of {', '.join(FORMATS)}"
        )
    rows = _renamed(scan_rows(path, split=split, data_dir=data_dir), columns)
    first = list(islice(rows, _LOOKED_AT))
    if not first:
        raise DataError(f"{path}: holds no rows; expected at least one")
    format = format or _usual_format(first)
    records, quarantined, num_rows = [], [], 0
    for row in chain(first, rows):
        num_rows += 1
        found = row if isinstance(row, Fault) else adapt(row, format)
        if isinstance(found, Fault):
            quarantined.append(found)
        else:
            records += found
    return Records(records, quarantined, num_rows, format)


def _renamed(
    rows: Iterable[Row | Fault], columns: Mapping[str, str] | None
) -> Iterator[Row | Fault]:
    for row in rows:
        if columns and isinstance(row, Row):
            try:
                [row] = rename_columns([row], dict(columns))
            except DataError as error:
                row = fault_of(row, error)
        yield row


def fault_of(row: Row, error: DataError) -> Fault:
    """A row with what is wrong with it. No reference."""
    reason = str(error).removeprefix(f"{row.origin}: ")
    return Fault(row.origin, reason, _json(row.values))


def _usual_format(rows: list[Row | Fault]) -> str:
    """The format of most rows, so that a damaged one is not taken for another kind."""
    formats: Counter[str] = Counter()
    problem = None
    for row in rows:
        if isinstance(row, Fault):
            problem = problem or DataError(f"{row.origin}: {row.reason}")
            continue
        try:
            formats[detect_format(row)] += 1
        except DataError as error:
            problem = problem or error
    if not formats:
        assert problem is not None
        raise problem
    return formats.most_common(1)[0][0]


def adapt(row: Row, format: str) -> list[Record] | Fault:
    """A row's records, or why there are none: a row with any fault gives none.

    No reference.

    Args:
      row: as ``read_rows`` gives it.
      format: a name in ``FORMATS``.

    Returns:
      At least one record, or the fault.

    >>> adapt(Row({"prompt": ""}, "sums.jsonl", 1), "prompt").origin
    'sums.jsonl:1'
    """
    try:
        found = check_sizes(FORMATS[format](row))
    except DataError as error:
        return fault_of(row, error)
    return found


def check_sizes(records: list[Record]) -> list[Record]:
    """The records, unless one is larger than any example is. No reference.

    Raises:
      DataError: one has more than ``LARGEST_ROW`` characters.
    """
    for record in records:
        if (size := _size(record)) > LARGEST_ROW:
            raise DataError(
                f"{record.origin}: {size:,} characters are more than {LARGEST_ROW:,}; "
                "remove the row"
            )
    return records


def _size(value: Any) -> int:
    """Characters of all texts in a record, or in a part of one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, tuple):
        return sum(map(_size, value))
    if isinstance(value, int | float | None):
        return 0
    return sum(map(_size, content(value).values()))


def write_records(records: Iterable[Record], path: str | Path) -> None:
    """Writes records as JSONL, one a line, with ``origin``. No reference.

    Args:
      records: of text or of messages.
      path: the file, replaced if it is there.

    Raises:
      DataError: the file cannot be written; what was there before still is.
    """
    write_rows(map(record_values, records), path, default=repr)


def write_quarantined(faults: Iterable[Fault], path: str | Path) -> None:
    """Writes what was put aside as JSONL: origin, reason, raw. No reference.

    Args:
      faults: as ``read_records`` gives them.
      path: the file, replaced if it is there.

    Raises:
      DataError: the file cannot be written; what was there before still is.
    """
    write_rows(map(dataclasses.asdict, faults), path)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=repr)
