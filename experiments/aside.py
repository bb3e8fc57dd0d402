"""Rows that a run cannot use: kept in its directory, counted, and said."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rlhf_jax.data import Fault, Row, read_rows, write_quarantined
from rlhf_jax.data.sorting import reason_kind
from rlhf_jax.errors import UserError
from rlhf_jax.processes import by_first
from rlhf_jax.report import write_report

QUARANTINE = "quarantine.jsonl"  # in the run directory
_NAMED = 3  # faults in a message


@dataclasses.dataclass(frozen=True)
class Reading:
    """Every row that was read, by its origin: used, or put aside."""

    run_dir: Path
    max_faulty: float  # share of a source's rows
    rows: dict[str, Row]
    faults: dict[str, Fault]

    def also(self, faults: Iterable[Fault]) -> "Reading":
        """With more of the rows put aside."""
        more = {fault.origin: fault for fault in faults}
        return dataclasses.replace(self, faults=self.faults | more)

    def shares(self) -> dict[str, tuple[list[Fault], int]]:
        """(faults, rows read) of each source."""
        counts = Counter(map(_source, self.rows.keys() | self.faults.keys()))
        found = {source: ([], count) for source, count in counts.items()}
        for origin, fault in self.faults.items():
            found[_source(origin)][0].append(fault)
        return found


def put_aside(reading: Reading) -> None:
    """Writes what cannot be used, with reasons; what it was in earlier runs goes.

    Raises:
      UserError: it is more of a source than the run allows.
    """
    path, shares = reading.run_dir / QUARANTINE, reading.shares()
    kept = [f for f in _read(path) if _source(f.origin) not in shares]
    by_first(lambda: _write(path, [*kept, *reading.faults.values()]))
    for source, (found, count) in shares.items():
        if len(found) > reading.max_faulty * count:
            first = "; ".join(
                f"{f.origin}: {f.reason}" for f in sorted(found, key=_place)[:_NAMED]
            )
            raise UserError(
                f"{source}: {len(found):,} of {count:,} rows cannot be used, more than "
                f"data.max_faulty = {reading.max_faulty:g} of them: correct or remove "
                f"them, or allow more; all are in {path}, the first: {first}"
            )


def say_put_aside(run_dir: Path) -> None:
    """One line about the rows that are put aside; none where there are none."""
    path = run_dir / QUARANTINE
    if faults := _read(path):
        kinds = Counter(reason_kind(fault.reason) for fault in faults)
        why = "; ".join(f"{n:,} × {kind}" for kind, n in kinds.most_common())
        shown = why.encode("utf-8", "backslashreplace").decode()
        rows = "row" if len(faults) == 1 else "rows"
        print(f"{path}: {len(faults):,} {rows} put aside: {shown}")


def finish_run(run_dir: Path) -> None:
    """The report, and a line about rows that were put aside."""
    write_report(run_dir)
    say_put_aside(run_dir)


def _write(path: Path, faults: list[Fault]) -> None:
    """In the order of the files; where there are none, no file."""
    if faults:
        write_quarantined(sorted(faults, key=_place), path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path) -> list[Fault]:
    if not path.is_file():
        return []
    return [Fault(**row.values) for row in read_rows(path)]


def _place(fault: Fault) -> tuple[str, list[int]]:
    """Source, then line and object, for the order of the file."""
    source, _, place = fault.origin.rpartition(":")
    return source, [int(number) for number in re.findall(r"\d+", place)]


def _source(origin: str) -> str:
    return origin.rpartition(":")[0]
