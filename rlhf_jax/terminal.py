"""What a run shows on the terminal: progress, tables, the plan, samples.

Model text is shown as it is: never read as markup, without control characters.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100  # columns of a table that is written to a file or a pipe


@contextmanager
def progress(
    description: str, total: int, *, done: int
) -> Iterator[Callable[..., None]]:
    """Shows how far a stage is; silent when stdout is not a terminal. No reference.

    Args:
      description: the stage.
      total: steps in all.
      done: steps that an earlier run has made already.

    Yields:
      A function to call after each step with the numbers to show beside the bar; with
      ``steps=0`` it shows numbers in the middle of one.

    >>> with progress("ppo", 2, done=0) as advance:
    ...     for step in range(2):
    ...         advance({"reward": 0.5, "kl": 1.25})
    """
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stdout),
        disable=not sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(description, total=total, completed=done, numbers="")

        def advance(numbers: Mapping[str, float], steps: int = 1) -> None:
            shown = "  ".join(f"{k} {float(v):.3g}" for k, v in numbers.items())
            bar.update(task, advance=steps, numbers=shown)

        yield advance


def printable(text: str) -> str:
    """Text without control characters, which could upset a terminal. No reference.

    >>> printable("good\\x1b[2J")
    'good\ufffd[2J'
    """
    return "".join(c if c == "\n" or c.isprintable() else "\ufffd" for c in text)


def _cell(value: object) -> Text:
    """Text as it is: no markup."""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return Text(printable(shown))


def _print(table: Table) -> None:
    table.title_justify = "left"
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    Console(file=sys.stdout, width=width).print(table)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, leading=0
) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_style="bold", leading=leading)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        justify = "right" if numeric else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Prints a table to stdout, 100 columns wide where that is no terminal.

    No reference. Floats show four digits; columns of numbers are set to the right; text
    that is too long for its column goes on below.

    Args:
      title: what the table is about.
      columns: headings, one a column, with units.
      rows: as many cells as columns.

    Raises:
      ValueError: a row with more or fewer cells.

    >>> print_table("Scores", ["split", "accuracy"], [["eval", 0.75]])
    ... # doctest: +NORMALIZE_WHITESPACE
     Scores
    <BLANKLINE>
      split   accuracy
     ──────────────────
      eval        0.75
    <BLANKLINE>
    """
    rows = [list(row) for row in rows]
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise ValueError(
                f"{title}, row {number}: {len(row)} cells for {len(columns)} columns"
            )
    _print(_table(title, columns, rows))


def memory_estimate(
    *,
    trained: int,
    frozen: int,
    tokens: int,
    length: int,
    d_model: int,
    layers: int,
    heads: int,
    vocab_size: int,
    itemsize: int = 4,
) -> dict[str, int]:
    """An estimate of a training step's memory on one device, in bytes.

    Weights, gradients and two Adam moments of the trained params in float32, weights
    of the frozen models, and per layer tokens·(34·D + 5·H·T) activation values of half
    an ``itemsize`` each (Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, which
    counts bytes of 16-bit training), and logits with their gradient in float32. An
    estimate: the compiler fuses, rematerialises and pads, so expect it to be off by up
    to a factor of two.

    Args:
      trained: number of trained parameters.
      frozen: number of parameters of reference and reward models.
      tokens: tokens in a (micro-)batch on one device.
      length: T, tokens in a row.
      d_model: D, model width.
      layers: L.
      heads: H, attention heads.
      vocab_size: V, or as many columns of the logits as are there at a time.
      itemsize: bytes of a compute value: 4 for float32, 2 for bfloat16.

    Returns:
      Bytes by part: weights, gradients, optimizer, frozen, activations, total.

    >>> sizes = dict(tokens=8, length=4, d_model=2, layers=1, heads=1, vocab_size=10)
    >>> memory_estimate(trained=100, frozen=50, **sizes)["total"]
    3848
    """
    parts = {
        "weights": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "frozen": 4 * frozen,
        "activations": tokens
        * layers
        * (34 * d_model + 5 * heads * length)
        * itemsize
        // 2
        + 8 * tokens * vocab_size,
    }
    return parts | {"total": sum(parts.values())}


def _size(count: float, unit: str = "") -> str:
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}{unit}".strip()


def print_plan(
    title: str,
    *,
    parameters: int,
    steps: int,
    tokens_per_step: int,
    devices: Sequence[Any],
    memory: Mapping[str, int],
    mesh: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Prints what is going to run, before anything is compiled. No reference.

    Args:
      title: the experiment and its stage.
      parameters: trained parameters.
      steps: updates in all.
      tokens_per_step: tokens in one global batch.
      devices: those that the run uses, as from ``jax.devices()``.
      memory: bytes by part, as from ``memory_estimate``.
      mesh: devices along each axis, where parameters lie in parts.

    >>> import jax
    >>> memory = {"weights": 400, "total": 2_000}
    >>> print_plan("toy", parameters=100, steps=10, tokens_per_step=64,
    ...     devices=jax.devices("cpu")[:1], memory=memory)
    ... # doctest: +NORMALIZE_WHITESPACE
     toy
    <BLANKLINE>
      trained parameters             100
      updates                        10
      tokens an update               64
      devices                        1 × cpu
      memory a device (estimate)   2 kB: weights 400 B
    <BLANKLINE>
    """
    parts = "  ".join(f"{k} {_size(v, 'B')}" for k, v in memory.items() if k != "total")
    cut = [f"{name} {count}" for name, count in mesh.items() if count > 1]
    shared = f": {' × '.join(cut)}" if cut else ""
    table = Table(title=title, box=SIMPLE_HEAD, title_style="bold", show_header=False)
    for name, value in [
        ("trained parameters", _size(parameters)),
        ("updates", f"{steps:,}"),
        ("tokens an update", f"{tokens_per_step:,}"),
        ("devices", f"{len(devices)} × {devices[0].device_kind}{shared}"),
        ("memory a device (estimate)", f"{_size(memory['total'], 'B')}: {parts}"),
    ]:
        table.add_row(name, _cell(value))
    _print(table)


def samples_table(
    prompts: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    *,
    scores_before: Sequence[float],
    scores_after: Sequence[float],
) -> None:
    """Prints what the policy answered before and after training, with scores.

    No reference.

    Args:
      prompts: B prompts.
      before: B responses of the policy before training.
      after: B responses of the trained policy.
      scores_before: B scores.
      scores_after: B scores.

    Raises:
      ValueError: the five do not have the same length.

    >>> samples_table(["Hi"], ["no"], ["yes"], scores_before=[-1.0], scores_after=[1.0])
    ... # doctest: +NORMALIZE_WHITESPACE
     Samples
    <BLANKLINE>
      prompt   before   score   after   score
     ─────────────────────────────────────────
      Hi       no          -1   yes         1
    <BLANKLINE>
    """
    rows = list(zip(prompts, before, scores_before, after, scores_after, strict=True))
    columns = ["prompt", "before", "score", "after", "score"]
    _print(_table("Samples", columns, rows, leading=1))
