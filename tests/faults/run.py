"""Tries faults and bad input, row by row of a table, and prints how many held.

  python tests/faults/run.py
  python tests/faults/run.py --rows 1,5,22 --repeat 50

Runs the tests that are marked with a row, ``@pytest.mark.fault(22)``. A row without a
test, or with one that was skipped, has not passed. After a run of all rows the table is
written into docs/faults.md. The exit status is 1 unless every row that was asked for
has passed.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it

from faults.rows import ROWS
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
TITLES = ("row", "fault or input", "tests", "passed of tried", "seconds")


class Outcomes:
    """A plugin: chooses the tests of some rows, and notes how each of them ends."""

    def __init__(self, rows: Iterable[int]):
        self.rows = frozenset(rows)
        self.of: dict[str, frozenset[int]] = {}  # rows of a test
        self.ends: dict[str, str] = {}  # passed, failed or skipped
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        others = []
        for item in items:
            told = (n for mark in item.iter_markers("fault") for n in mark.args)
            if found := self.rows.intersection(told):
                self.of[item.nodeid] = found
            else:
                others.append(item)
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.nodeid in self.of]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        if report.outcome != "passed" or report.when == "call":
            # What fails stays failed, whatever is said of its end.
            before = self.ends.get(name)
            self.ends[name] = before if before == "failed" else report.outcome

    def table(self) -> list[tuple[str, ...]]:
        """A line a row: number, name, tests, passed of tried, seconds."""
        lines = []
        for row in sorted(self.rows):
            tests = [name for name, rows in self.of.items() if row in rows]
            passed = sum(self.ends.get(name) == "passed" for name in tests)
            skipped = sum(self.ends.get(name) == "skipped" for name in tests)
            shown = f"{passed} of {len(tests)}" if tests else "no test"
            shown += f", {skipped} skipped" if skipped else ""
            seconds = sum(self.seconds.get(name, 0.0) for name in tests)
            name = ROWS[row][0]
            lines.append((str(row), name, str(len(tests)), shown, f"{seconds:.0f}"))
        return lines

    def passed(self) -> list[int]:
        """The rows that have tests, all of which passed."""
        return [
            row
            for row in sorted(self.rows)
            if (tests := [name for name, rows in self.of.items() if row in rows])
            and all(self.ends.get(name) == "passed" for name in tests)
        ]


def as_markdown(lines: Iterable[Sequence[str]], total: str) -> str:
    """The table of a page."""
    rows = [TITLES, ("---",) * len(TITLES), *lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{BEGIN}\n{table}\n\n{total}\n{END}"


def write_page(page: Path, table: str) -> None:
    """Puts the table between its two comments."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"error: {page}: expected {BEGIN} and {END} in it")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + table + after, encoding="utf-8")


def run(
    rows: Sequence[int],
    *,
    tests: Sequence[str] = (),
    page: Path = PAGE,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs the tests of some rows, shows the table; 0 if every row has passed.

    Args:
      rows: their numbers.
      tests: files or folders; none takes those that pytest.ini names.
      page: where the table goes if the rows are all that there are.
      environment: variables for the tests.
    """
    os.environ.update(environment or {})
    outcomes, began = Outcomes(rows), time.monotonic()
    options = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-q"]
    status = pytest.main([*options, *tests], plugins=[outcomes])
    passed, minutes = outcomes.passed(), (time.monotonic() - began) / 60
    total = (
        f"{len(passed)} of {len(rows)} rows passed, "
        f"{len(outcomes.of)} tests, {minutes:.1f} minutes."
    )
    table = Table(*TITLES, title=total)
    lines = outcomes.table()
    for number, line in zip(sorted(rows), lines, strict=True):
        table.add_row(*line, style=None if number in passed else "bold red")
    Console().print(table)
    finished = status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if finished and set(rows) == set(ROWS):
        write_page(page, as_markdown(lines, total))
        print(f"table: {page}")
    return 0 if status == pytest.ExitCode.OK and len(passed) == len(rows) else 1


def as_rows(text: str) -> list[int]:
    """Numbers with commas between them, each of a row that there is."""
    rows = sorted({int(part) if part.isdecimal() else 0 for part in text.split(",")})
    if not ROWS.keys() >= {*rows}:
        raise argparse.ArgumentTypeError(
            f"{text}: expected numbers from 1 to {max(ROWS)}, such as 1,5,22"
        )
    return rows


def main(args: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=as_rows, default=[*ROWS], help="such as 1,5,22")
    parser.add_argument("--repeat", type=int, help="cases of tests that repeat")
    options = parser.parse_args(args)
    repeat = options.repeat
    environment = {} if repeat is None else {"FAULTS_REPEAT": str(repeat)}
    os.chdir(ROOT)
    return run(options.rows, environment=environment)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
