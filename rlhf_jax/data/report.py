"""What is in a data file, as tables on the terminal."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.quarantine import Records
from rlhf_jax.data.row import Fault
from rlhf_jax.data.sorting import reason_kind
from rlhf_jax.data.statistics import (
    PERCENTILES,
    LengthBias,
    count_duplicates,
    count_lengths,
    length_bias,
    length_percentiles,
)
from rlhf_jax.terminal import print_table

MOST_REASONS = 50  # kinds of faults that are shown
_SHOWN = 60  # characters of a faulty row


def print_report(
    name: str, read: Records, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """Prints counts, lengths, duplicates, length bias, and what was put aside.

    No reference.

    Args:
      name: of the source.
      read: what ``read_records`` found in it.
      tokenizer: whose tokens are counted; None counts words.
    """
    records = read.records
    aside = len(read.quarantined)
    columns = ["format", "rows read", "used", "quarantined", "records"]
    counts = [read.num_rows, read.num_rows - aside, aside, len(records)]
    print_table(name, columns, [[read.format, *map(_count, counts)]])
    if records:
        lengths = count_lengths(records, tokenizer)
        unit = "words" if tokenizer is None else "tokens"
        heads = [f"{p} %" for p in PERCENTILES[:-1]] + ["longest"]
        rows = [
            [part, _count(count), *map(_count, at)]
            for part, count, at in length_percentiles(records, lengths)
        ]
        print_table(f"Length in {unit}, percentiles", ["part", "texts", *heads], rows)
        _print_pairs(read, length_bias(records, lengths))
    if read.quarantined:
        heads = ["rows", "reason, and the first such row"]
        print_table("Quarantined", heads, _reasons(read.quarantined))


def _print_pairs(read: Records, bias: LengthBias) -> None:
    duplicates = count_duplicates(read.records)
    rows: list[list[Any]] = [
        ["prompts that come again", _count(duplicates.prompts)],
        ["records that come again", _count(duplicates.records)],
    ]
    if bias.records or bias.equal:
        rows += [
            ["pairs that come again", _count(duplicates.pairs)],
            ["pairs judged both ways", _count(duplicates.contradictions)],
            ["the longer answer is preferred", _share(bias)],
        ]
    print_table("Duplicates and length bias", ["what", "how many"], rows)


def _share(bias: LengthBias) -> str:
    if math.isnan(bias.share):
        return "no answers of different lengths"
    return (
        f"{bias.share:.3f} (95 % interval {bias.low:.3f} – {bias.high:.3f}) of "
        f"{bias.records:,}; {bias.equal:,} pairs of equal length left out"
    )


def _reasons(faults: Sequence[Fault]) -> list[list[Any]]:
    """The kinds of reasons, the most frequent first, each with its first row."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(reason_kind(fault.reason), []).append(fault)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    rows: list[list[Any]] = []
    for kind, found in ordered[:MOST_REASONS]:
        line, raw = found[0].origin.rpartition(":")[2], found[0].raw
        shown = raw if len(raw) <= _SHOWN else f"{raw[:_SHOWN]}…"
        rows.append([_count(len(found)), f"{kind}\n  line {line}: {shown}"])
    others = ordered[MOST_REASONS:]
    if others:
        rest = sum(len(found) for _, found in others)
        rows.append([_count(rest), f"{len(others)} other reasons"])
    return rows


def _count(number: int) -> str:
    return f"{number:,}"
