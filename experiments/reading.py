"""Rows of files and data sets: each is used or put aside, and some are held back."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.aside import Reading, put_aside, say_put_aside
from rlhf_jax.data import (
    DataError,
    Fault,
    Row,
    read_transcripts,
    rename_columns,
    scan_rows,
    sort_out,
)
from rlhf_jax.data.quarantine import check_sizes, fault_of
from rlhf_jax.data.sources import TFDS_PREFIX
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError

RowKind = Literal["messages", "ranks", "text"]
Parse = Callable[[list[Row]], list[Any]]  # raises at the first faulty row
Parsers = Mapping[RowKind, Parse]

_LOOKED_AT = 1000  # rows from which the kind of a file is told


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from."""

    path: str
    """A .jsonl, .json, .csv or .parquet file, plain or .gz; or tfds:NAME/CONFIG:SPLIT,
    with a split such as train or train[:10%]."""
    eval_path: str | None = None
    """Examples to evaluate on; none holds some of the training examples back."""
    eval_fraction: float = 0.05
    """Share of the examples held back where there is no eval_path."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Columns to rename: the file's own name, then the one that the script expects."""
    transcripts: bool = False
    """Reads transcripts of Human: and Assistant: turns as messages, which go through
    the tokenizer's chat template."""
    too_long: TooLong = "error"
    """Rows that do not fit: faulty, or the end of their prompts is kept."""
    max_faulty: float = 0.01
    """Share of a file's rows that may be faulty; they are put into quarantine.jsonl of
    the run directory. The run stops where there are more."""
    data_dir: Path | None = None
    """Where TFDS data sets are built; none is TFDS's own default."""

    def __post_init__(self):
        if not 0 < self.eval_fraction < 1:
            raise UserError(
                f"data.eval_fraction = {self.eval_fraction}: expected a share between "
                "0 and 1"
            )
        if not 0 <= self.max_faulty < 1:
            raise UserError(
                f"data.max_faulty = {self.max_faulty}: expected a share from 0, at "
                "which the first faulty row stops the run, to less than 1"
            )


class Texts(NamedTuple):
    """Examples as they are read, before they are tokens."""

    learned: list[Any]
    held_out: list[Any]
    reading: Reading


def read_data(
    config: DataConfig, parsers: Parsers, *, run_dir: Path, seed: int
) -> Texts:
    """Training and held-out examples; the same seed holds the same ones back.

    Args:
      config: where they come from.
      parsers: what makes examples of rows, by the kind of most rows.
      run_dir: where the rows are put that cannot be used.
      seed: of what is held out.

    Raises:
      UserError: a file as a whole cannot be read, too many of its rows are faulty, or
        it has not two that can be used.
    """
    examples, rows, faults = _parse(config, config.path, parsers)
    held_out: list[Any] = []
    if config.eval_path is not None:
        held_out, more_rows, more_faults = _parse(config, config.eval_path, parsers)
        rows, faults = rows | more_rows, faults + more_faults
    reading = Reading(run_dir, config.max_faulty, rows, {}).also(faults)
    put_aside(reading)
    if config.eval_path is None:
        order = np.random.default_rng(seed).permutation(len(examples))
        count = max(1, round(config.eval_fraction * len(examples)))
        shuffled = [examples[i] for i in order]
        examples, held_out = shuffled[count:], shuffled[:count]
    _check_some(config, examples, held_out)
    return Texts(examples, held_out, reading)


def tokenize_data(
    config: DataConfig, texts: Texts, tokenize: Callable[[list[Any]], Any]
) -> tuple[Any, Any]:
    """(training, held-out) examples as tokens, and a line about what is put aside.

    Args:
      config: where they come from.
      texts: of `read_data`.
      tokenize: a strict function of examples, whose errors name the row. All examples
        of a row are put aside together.

    Raises:
      UserError: too many rows cannot be tokenized as asked, or hardly any can.
    """
    parts, reading = [texts.learned, texts.held_out], texts.reading
    while True:
        done = [sort_out(part, tokenize) for part in parts]
        faulty = [found for _, others in done for found in others]
        if not faulty:
            break
        more = [fault_of(reading.rows[x.origin], error) for x, error in faulty]
        reading = reading.also(more)
        parts = [[x for x in p if x.origin not in reading.faults] for p in parts]
    if reading.faults:
        put_aside(reading)
        say_put_aside(reading.run_dir)
    _check_some(config, *parts)
    (learned, _), (held_out, _) = done
    return learned, held_out


def _check_some(config: DataConfig, learned: Sequence, held_out: Sequence) -> None:
    if not learned or not held_out:
        raise UserError(
            f"{config.path}: {len(learned)} examples to learn from and {len(held_out)} "
            "to evaluate on: expected one of each at least; give more rows"
        )


def _parse(
    config: DataConfig, path: str, parsers: Parsers
) -> tuple[list[Any], dict[str, Row], list[Fault]]:
    """Examples, all rows by their origins, and the rows that are put aside."""
    split = None
    if path.startswith(TFDS_PREFIX) and path.count(":") > 1:
        name, split = path.removeprefix(TFDS_PREFIX).split(":", 1)
        path = TFDS_PREFIX + name
    rows, faults = [], []
    for row in scan_rows(path, split=split, data_dir=config.data_dir):
        (faults if isinstance(row, Fault) else rows).append(row)
    if not rows and not faults:
        raise DataError(f"{path}: holds no rows; expected at least one")
    named = lambda rows: _named(config, rows)
    parse = usual_parser(sort_out(rows[:_LOOKED_AT], named)[0], parsers)
    examples, found = sort_out(rows, lambda x: check_sizes(parse(named(x))))
    faults += [fault_of(row, error) for row, error in found]
    return examples, {row.origin: row for row in rows}, faults


def _named(config: DataConfig, rows: list[Row]) -> list[Row]:
    """Rows with the columns that a script expects."""
    rows = rename_columns(rows, config.columns) if config.columns else rows
    return read_transcripts(rows) if config.transcripts else rows


def usual_parser(rows: Sequence[Row], parsers: Parsers) -> Parse:
    """That of most rows, so that a damaged one is not taken for another kind."""
    kinds: Counter[RowKind] = Counter(row_kind(row) for row in rows[:_LOOKED_AT])
    return parsers[kinds.most_common(1)[0][0]] if kinds else parsers["text"]


def row_kind(row: Row) -> RowKind:
    """Whether a row has lists of messages, ranks of several texts, or just text."""
    texts = (row.values.get(c) for c in ("prompt", "completion", "chosen", "rejected"))
    if "messages" in row.values or any(isinstance(text, list) for text in texts):
        return "messages"
    return "ranks" if "ranks" in row.values else "text"
