"""From what people did to files that training reads."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from rlhf_jax.data.writing import write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page.store import connect

JUDGED = """
SELECT tasks.*, items.prompt, items.completions, annotators.name, events.kind,
  events.value, events.seconds, events.instructions, events.time
FROM tasks JOIN events ON events.number = tasks.event
JOIN items ON items.id = tasks.item
JOIN annotators ON annotators.id = tasks.annotator ORDER BY events.number"""


def export(run_dir: Path, out: Path | None = None) -> dict[str, int]:
    """Writes what was judged so far as JSONL; labelling may go on. No reference.

    ``rankings.jsonl`` or ``ratings.jsonl``, ``skips.jsonl`` and ``instructions.jsonl``,
    see docs/labelling.md. The last judgement of a task counts; one undone counts no
    more.

    Args:
      run_dir: of the labels.
      out: the folder of the files; None: the run directory.

    Returns:
      {file name: rows}.

    Raises:
      UserError: no labels there, or the files cannot be written.
    """
    db, out = connect(run_dir), run_dir if out is None else out
    # One reading: every file tells of the same moment.
    db.execute("BEGIN")
    asked = db.execute("SELECT value FROM settings WHERE name = 'mode'").fetchone()
    mode = "ranking" if asked is None else asked["value"]
    votes, ratings, skips = _judgements(db, yes_no=mode == "yes_no")
    texts = [dict(row) for row in db.execute("SELECT * FROM instructions")]
    db.close()
    judged = ("ratings.jsonl", ratings)
    if mode == "ranking":
        judged = ("rankings.jsonl", votes)
    files = dict([judged, ("skips.jsonl", skips), ("instructions.jsonl", texts)])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: no folder, and none can be made ({error.strerror}); choose "
            "another --out"
        ) from error
    for name, rows in files.items():
        write_rows(rows, out / name)
    return {name: len(rows) for name, rows in files.items()}


def _judgements(
    db: sqlite3.Connection, *, yes_no: bool
) -> tuple[list[Any], list[Any], list[Any]]:
    """(rankings, ratings, skips) in the order in which they were given."""
    found: tuple[list[Any], list[Any], list[Any]] = [], [], []
    for row in db.execute(JUDGED):
        value, completions = json.loads(row["value"]), json.loads(row["completions"])
        who = {
            "annotator": row["annotator"],
            "annotator_name": row["name"],
            "shown": json.loads(row["shown"]),
            "repeat": bool(row["repeat"]),
            "seconds": row["seconds"],
            "instructions": row["instructions"],
            "time": row["time"],
        }
        item = {"item": row["item"], "prompt": row["prompt"]}
        if row["kind"] == "skip":
            skipped = {"skipped": value["reason"], "note": value["note"]}
            found[2].append(item | {"completions": completions} | skipped | who)
        elif "ranks" in value:
            found[0].append(item | {"completions": completions} | value | who)
        else:
            label = {"label": value["rating"]} if yes_no else {}
            rated = {"completion": completions[0]} | value | label
            del who["shown"]
            found[1].append(item | rated | who)
    return found
