"""Text and Parquet files to rows, one by one: what is no row does not stop the next."""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.data.row import DataError, Fault, Row, origin

MAX_DEPTH = 200  # of lists in lists: what goes through a row may call itself
KINDS = (".jsonl", ".json", ".csv", ".parquet")

Values = dict[str, Any]


def scan_file(path: Path) -> Iterator[Row | Fault]:
    """The rows of a file, and what stands where a row should. No reference.

    Args:
      path: as ``read_rows`` takes it, but not a data set.

    Yields:
      A row, or a fault where a line is malformed, in the order of the file.

    Raises:
      DataError: the file is missing, unreadable, empty or of an unknown kind, or
        nothing after some point of it can be told apart.
    """
    kind = path.suffixes[-2:-1] if path.suffix == ".gz" else path.suffixes[-1:]
    if kind not in [[known] for known in KINDS]:
        raise DataError(
            f"{path}: unknown extension {''.join(path.suffixes[-2:])!r}; expected "
            f".jsonl, .json, .csv or .parquet, plain or with .gz; convert or rename "
            f"the file"
        )
    content = _content(path)
    if not content:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    if kind == [".parquet"]:
        return _parquet_rows(content, path)
    content = content.removeprefix(b"\xef\xbb\xbf")
    if kind == [".csv"]:
        return _csv_rows(content, path)
    if kind == [".json"] and content.lstrip()[:1] == b"[":
        return _array_rows(content, path)
    return _jsonl_rows(content, path)


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


def _lines(content: bytes, path: Path) -> Iterator[tuple[int, str | Fault]]:
    """The lines with their numbers, each with its line end; decoded one by one."""
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = (
                f"not UTF-8 (byte 0x{line[error.start]:02x} at byte "
                f"{error.start + 1} of the line); save the file as UTF-8"
            )
            raw = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            yield number, Fault(f"{path}:{number}", reason, raw)


def _jsonl_rows(content: bytes, path: Path) -> Iterator[Row | Fault]:
    source = str(path)
    for number, line in _lines(content, path):
        if isinstance(line, Fault):
            yield line
        elif line.strip():
            text = line.rstrip("\r\n")
            try:
                yield Row(parse_object(text), source, number)
            except ValueError as error:
                yield Fault(f"{path}:{number}", str(error), text)


def parse_object(text: str) -> Values:
    """The mapping that a line of JSONL holds. No reference.

    Args:
      text: JSON in one line.

    Returns:
      Column names with their values.

    Raises:
      ValueError: the text is not JSON, not an object, or has a key twice. The message
        says what was expected.

    >>> parse_object('{"a": NaN}')
    Traceback (most recent call last):
    ValueError: not JSON (NaN is not a number that JSON knows); expected one object a \
line, such as {"prompt": "…"}; correct the line
    """
    try:
        if text.startswith("\ufeff"):
            raise ValueError("a byte-order mark, which only the file may begin with")
        values = _DECODER.decode(text)
        _check_depth(values, text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"not JSON ({_json_reason(error)}); expected one object a line, such as "
            f'{{"prompt": "…"}}; correct the line'
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"expected a JSON object, found {type(values).__name__}; write one object "
            f"with named columns a line"
        )
    return values


def _check_depth(values: Any, text: str) -> None:
    """Raises where lists and objects lie too deep in one another."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth, layer = 0, [values] if isinstance(values, dict | list) else []
    while layer:
        depth += 1
        inner = [list(x.values()) if isinstance(x, dict) else x for x in layer]
        layer = [x for items in inner for x in items if isinstance(x, dict | list)]
    if depth > MAX_DEPTH:
        raise ValueError(f"{depth} lists and objects in one another, not {MAX_DEPTH}")


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at character {error.colno}"
    return str(error)


def _unique_keys(pairs: list[tuple[str, Any]]) -> Values:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _array_rows(content: bytes, path: Path) -> Iterator[Row | Fault]:
    """The objects of one JSON array, each at the line where it begins."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    at, line, counted, place = _skip(text, text.index("[") + 1), 1, 0, 0
    while text[at : at + 1] != "]":
        further, counted = text.count("\n", counted, at), at
        line, place = line + further, 1 if further else place + 1
        try:
            values, end = _DECODER.raw_decode(text, at)
            _check_depth(values, text[at:end])
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{line}: not JSON ({_json_reason(error)}); what follows cannot "
                f"be told apart; correct the file, or write one object a line as .jsonl"
            ) from error
        if isinstance(values, dict):
            yield Row(values, str(path), line, place)
        else:
            reason = f"expected a JSON object, found {type(values).__name__}; remove it"
            yield Fault(origin(str(path), line, place), reason, text[at:end])
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise DataError(
                f"{path}:{line}: not whole: neither , nor ] after this object; copy "
                f"the file again, or write one object a line as .jsonl"
            )
    if _skip(text, at + 1) < len(text):
        raise DataError(
            f"{path}: more text after the ] that ends the list; put everything into "
            f"one list, or write one object a line as .jsonl"
        )


def _skip(text: str, at: int) -> int:
    """Where the white space ends that begins there."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _csv_rows(content: bytes, path: Path) -> Iterator[Row | Fault]:
    lines: list[str] = []  # of the row that is being read
    broken: list[Fault] = []  # of these lines

    def text() -> Iterator[str]:
        for _, line in _lines(content, path):
            if isinstance(line, Fault):
                broken.append(line)
            lines.append(line.raw if isinstance(line, Fault) else line)
            yield lines[-1]

    reader = csv.reader(text(), strict=True)
    header = _csv_header(reader, broken, path)
    while True:
        lines.clear()
        broken.clear()
        first, reason, fields = reader.line_num + 1, "", []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"not CSV ({error}); correct the quoting of the row"
        if fields and len(fields) != len(header):
            reason = (
                f"{len(fields)} fields, but the header names {len(header)} columns "
                f"({', '.join(header)}); quote fields that hold a comma or a line break"
            )
        if broken:
            yield broken[0]
        elif reason:
            yield Fault(f"{path}:{first}", reason, "".join(lines).rstrip("\r\n"))
        elif fields:
            yield Row(dict(zip(header, fields, strict=True)), str(path), first)


def _csv_header(reader: Any, broken: list[Fault], path: Path) -> list[str]:
    try:
        header = next((fields for fields in reader if fields), [])
    except csv.Error as error:
        raise DataError(
            f"{path}:1: not CSV ({error}); correct the quoting of the row"
        ) from error
    if broken:
        raise DataError(f"{broken[0].origin}: {broken[0].reason}")
    if not all(header) or len(set(header)) < len(header):
        raise DataError(
            f"{path}:1: expected a header of distinct column names, found {header}; "
            f"write the names of the columns into the first line"
        )
    return header


def _parquet_rows(content: bytes, path: Path) -> Iterator[Row | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        for number, values in enumerate(table.to_pylist(), start=1):
            yield Row(values, str(path), number)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: not a whole Parquet file ({reason}); write or download it again"
        ) from error
