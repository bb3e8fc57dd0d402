"""Values of a row's columns, each checked; the errors name row, column and remedy."""

import math
import re
import zlib
from typing import Any

from rlhf_jax.data.row import DataError, Row


def column_value(row: Row, column: str, instead: str = "") -> Any:
    """Whatever the column holds; ``instead`` is what could stand in its place."""
    if column not in row.values:
        other = f" (nor {instead})" if instead else ""
        raise DataError(
            f"{row.origin}: no column {column!r}{other}; the columns are "
            f"{column_names(row)}; rename one (rename_columns) "
            f"or add it"
        )
    return row.values[column]


def text_column(row: Row, column: str, *, empty: bool = False) -> str:
    """Text that UTF-8 can write; empty only where that is allowed."""
    return check_text(row, column, column_value(row, column), empty=empty)


def check_text(row: Row, column: str, value: Any, *, empty: bool = False) -> str:
    """The value, if it is text that UTF-8 can write; else raises."""
    if not isinstance(value, str) or not (value or empty):
        wanted = "text" if empty else "text that is not empty"
        raise column_error(row, column, wanted, describe(value))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot
        found = f"{value[error.start]!r} at character {error.start + 1}"
        raise column_error(
            row, column, "text without lone surrogates", found
        ) from error
    return value


def check_label(row: Row, column: str, value: Any) -> int:
    """1 for good, right or true, 0 for bad, wrong or false; raises for all else."""
    if isinstance(value, bool):
        return int(value)
    return check_integer(row, column, value, 0, 1)


def list_column(row: Row, column: str, wanted: str, *, least: int = 1) -> list[Any]:
    """A list with at least so many entries; ``wanted`` is what the error expects."""
    value = column_value(row, column)
    if not isinstance(value, list | tuple) or len(value) < least:
        raise column_error(row, column, wanted, describe(value))
    return list(value)


def mapping_column(row: Row, column: str) -> dict[str, Any]:
    """Names with their values."""
    value = column_value(row, column)
    if not isinstance(value, dict):
        raise column_error(row, column, "a mapping", describe(value))
    return value


def check_integer(row: Row, column: str, value: Any, least: int, most: int) -> int:
    """An integer, also one in text, from least to most; raises for all else."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,10}", value):
        value = int(value)  # CSV knows text only
    if type(value) is not int or not least <= value <= most:
        wanted = "0 or 1" if (least, most) == (0, 1) else f"an integer ≥ {least}"
        raise column_error(row, column, wanted, describe(value))
    return value


def annotator_column(row: Row) -> int:
    """Who judged the row: an integer from −1, which is also that of no column."""
    annotator = row.values.get("annotator", -1)
    return check_integer(row, "annotator", annotator, -1, 2**31 - 1)


def number_column(row: Row, column: str, least: float) -> float:
    """A finite number, also one in text, not below least."""
    value = column_value(row, column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # of an integer without end
        number = math.nan
    if not math.isfinite(number) or number < least:
        wanted = "a finite number" + (f" ≥ {least:g}" if least == 0 else "")
        raise column_error(row, column, wanted, describe(value))
    return number


def describe(value: Any) -> str:
    """The value as a message shows it, in one short line."""
    if value is None:
        return "null"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}… ({type(value).__name__})"


def column_names(row: Row) -> str:
    """The columns of a row as a message shows them, in one short line."""
    names = [name if name.isprintable() else ascii(name) for name in row.values]
    shown = ", ".join(names) or "none"
    return shown if len(shown) <= 200 else f"{shown[:197]}…"


def column_error(row: Row, column: str, wanted: str, found: str) -> DataError:
    """The error of one column: where, what was expected, what was found."""
    return DataError(
        f"{row.origin}: column {column!r}: expected {wanted}, found {found}; the "
        f"columns are {column_names(row)}; correct or remove the row"
    )


def annotator_number(name: Any) -> int:
    """The number of an annotator whom a source knows by name: always the same one.

    Args:
      name: None is unknown, −1; an integer from 0 stays; of anything else, such as
        "ann" or a UUID, a checksum of 31 bits.

    >>> annotator_number(None), annotator_number(7), annotator_number("ann")
    (-1, 7, 1730179699)
    """
    if name is None:
        return -1
    if type(name) is int and 0 <= name < 2**31:
        return name
    return zlib.crc32(str(name).encode("utf-8", "backslashreplace")) & 0x7FFFFFFF
