"""Looks at data before it trains anything.

python -m rlhf_jax.data check FILE
python -m rlhf_jax.data build hh FOLDER
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from rlhf_jax.data.builders import build_dataset
from rlhf_jax.data.quarantine import read_records, write_quarantined, write_records
from rlhf_jax.data.report import print_report
from rlhf_jax.data.tokenizer import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.terminal import print_table


@dataclasses.dataclass(frozen=True)
class Check:
    """Says what a file holds, and what in it is faulty. The exit status is 1 if no row
    is usable."""

    file: tyro.conf.Positional[str]
    """A .jsonl, .json, .csv or .parquet file, plain or .gz; or tfds:NAME/CONFIG."""
    format: str | None = None
    """Name of a format (docs/data.md); none tells it from the columns."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Columns to rename: the file's own name, then the one that the format has."""
    split: str | None = None
    """Split of a TFDS data set."""
    data_dir: Path | None = None
    """Where TFDS data sets are built; none is TFDS's own default."""
    tokenizer: Path | None = None
    """Folder of a tokenizer whose tokens are counted; none counts words."""
    out: Path | None = None
    """Writes the usable records there, as JSONL that the scripts read."""
    quarantine: Path | None = None
    """Writes the other rows there, as JSONL: origin, reason, raw."""


@dataclasses.dataclass(frozen=True)
class Build:
    """Writes a data set, tfds:local_feedback/CONFIG, from files that are here."""

    config: tyro.conf.Positional[str]
    """hh, summarize_from_feedback or ultrafeedback."""
    folder: tyro.conf.Positional[Path]
    """Holds the files as their authors publish them, at any depth."""
    data_dir: Path | None = None
    """Where the data set is written; none is TFDS's own default."""


def check(options: Check) -> int:
    """Prints what a file holds; returns the exit status."""
    tokenizer = options.tokenizer and load_tokenizer(options.tokenizer)
    read = read_records(
        options.file,
        format=options.format,
        columns=options.columns,
        split=options.split,
        data_dir=options.data_dir,
    )
    print_report(options.file, read, tokenizer)
    if options.out is not None:
        write_records(read.records, options.out)
    if options.quarantine is not None:
        write_quarantined(read.quarantined, options.quarantine)
    return 0 if read.records else 1


def build(options: Build) -> int:
    """Builds a data set and prints its splits; returns the exit status."""
    counts = build_dataset(options.config, options.folder, data_dir=options.data_dir)
    title = f"tfds:local_feedback/{options.config}"
    print_table(title, ["split", "examples"], [*map(list, counts.items())])
    return 0


def main(args: Sequence[str]) -> int:
    """Runs one command; returns the exit status. No reference.

    Args:
      args: ``check FILE …`` or ``build CONFIG FOLDER …``, as on the command line.
    """
    commands = {"check": Check, "build": Build}
    options = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="python -m rlhf_jax.data",
        args=args,
        description="Looks at data before it trains anything.",
    )
    try:
        return check(options) if isinstance(options, Check) else build(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
