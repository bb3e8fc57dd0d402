"""Sums and products as files of prompts and completions."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments.inputs import DataConfig
from rlhf_jax.data import write_rows
from rlhf_jax.errors import UserError

Pair = tuple[int, int]
Sums = Iterable[tuple[str, str]]


def write_sums(folder: Path, sizes: Mapping[str, int], digits: int, seed: int) -> None:
    """``012+345=`` ``0357``, all different, in files of these sizes.

    With leading zeros a digit is always at the same place.
    """
    pairs = distinct_pairs(0, 10**digits, sum(sizes.values()), seed)
    row = lambda a, b: (f"{a:0{digits}}+{b:0{digits}}=", f"{a + b:0{digits + 1}}")
    for name, size in sizes.items():
        write_problems(folder, name, (row(*p) for p in itertools.islice(pairs, size)))


def write_products(
    folder: Path, sizes: Mapping[str, int], digits: int, seed: int
) -> None:
    """``34*56=`` ``>1904``, all different; every other one calls the calculator.

    Factors are so large that all products are of one length.
    """
    end = 10**digits
    least = math.isqrt(end**2 // 10) + 1
    pairs = distinct_pairs(least, end, sum(sizes.values()), seed)
    said = lambda i, a, b: (f"[{a}*{b}]{a * b}" if i % 2 else "") + f">{a * b}"
    for name, size in sizes.items():
        some = enumerate(itertools.islice(pairs, size))
        write_problems(
            folder, name, ((f"{a}*{b}=", said(i, a, b)) for i, (a, b) in some)
        )


def distinct_pairs(least: int, end: int, count: int, seed: int) -> Iterator[Pair]:
    """So many different pairs of numbers from ``least`` to below ``end``."""
    side = end - least
    if count > side**2:
        raise UserError(
            f"{count:,} problems: expected {side**2:,} at most, or more digits"
        )
    chosen = np.random.default_rng(seed).choice(side**2, count, replace=False)
    return ((least + n // side, least + n % side) for n in chosen.tolist())


def write_problems(folder: Path, name: str, rows: Sums) -> None:
    """Prompts and completions as JSONL."""
    named = ({"prompt": x, "completion": y} for x, y in rows)
    write_rows(named, folder / f"{name}.jsonl")


def problem_data(folder: Path, name: str) -> DataConfig:
    """Problems of that name, and those that are held out."""
    path = lambda name: str(folder / f"{name}.jsonl")
    return DataConfig(path(name), eval_path=path("held_out"))
