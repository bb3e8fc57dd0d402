"""Files that people write: TOML tables as frozen dataclasses, and texts with places."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Entry = TypeVar("Entry", bound="DataclassInstance")


def read_toml(path: Path, tables: tuple[str, ...]) -> dict[str, Any]:
    """A file with these tables and nothing else. No reference.

    Raises:
      UserError: no such file, not TOML, or another table.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    if unknown := found.keys() - {*tables}:
        raise UserError(
            f"{path}: unknown table {min(unknown)!r}; expected {' and '.join(tables)}"
        )
    return found


def read_list(
    path: Path, found: Mapping[str, Any], table: str, kind: type[Entry]
) -> tuple[Entry, ...]:
    """The entries of a [[table]], one or more, each with a name of its own.

    No reference.

    Raises:
      UserError: see ``make_entry``.
    """
    rows = found.get(table, [])
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected at least one [[{table}]]")
    entries = tuple(
        make_entry(kind, row, f"{path}: [[{table}]] {i + 1}")
        for i, row in enumerate(rows)
    )
    names = [row["name"] for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: two of [[{table}]] are named {min(twice)!r}")
    return entries


def make_entry(kind: type[Entry], row: Any, where: str) -> Entry:
    """A table as a dataclass whose fields are str, float or tuples of str.

    No reference.

    Raises:
      UserError: a field is missing, unknown, empty or of another type, or the dataclass
        refuses it; the message begins with ``where``.
    """
    known = {field.name: field for field in fields(kind)}
    if not isinstance(row, Mapping) or row.keys() - known.keys():
        raise UserError(f"{where}: expected {', '.join(known)}, and nothing else")
    given = {}
    for name, field in known.items():
        if name in row:
            given[name] = _value(row[name], field.type, f"{where}: {name}")
        elif field.default is MISSING:
            raise UserError(f"{where}: {name} is missing")
    try:
        return kind(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_template(name: str, text: str, places: tuple[str, ...]) -> None:
    """A text with these {places} and no others; {prompt} may be left out.

    No reference.

    Raises:
      UserError: a place is missing or unknown, or a brace stands alone.
    """
    try:
        parts = [part[1:] for part in Formatter().parse(text)]
    except ValueError as error:
        raise UserError(f"{name}: {error}; a brace itself is written twice") from error
    said = {word for word, _, _ in parts if word is not None}
    plain = not any(spec or conversion for _, spec, conversion in parts)
    if not plain or said - {*places} or {*places} - said - {"prompt"}:
        raise UserError(
            f"{name}: expected {', '.join(f'{{{place}}}' for place in places)} and no "
            "other names in braces ({prompt} may be left out)"
        )


def _value(value: Any, kind: Any, where: str) -> Any:
    """A text that says something, a finite number, or a list of texts as a tuple."""
    if kind is str and isinstance(value, str) and value.strip():
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    if kind not in (str, float) and isinstance(value, list):
        return tuple(_value(text, str, where) for text in value)
    expected = {str: "a text", float: "a number"}
    raise UserError(f"{where}: expected {expected.get(kind, 'a list of texts')}")
