"""What an annotator does, checked and written: vote, skip, undo."""

import json
import math
import re
import sqlite3
from dataclasses import dataclass
from typing import Any

from rlhf_jax.feedback.page.items import Mode
from rlhf_jax.feedback.page.store import transaction, utc_now

REASONS = {
    "unsure": "I cannot judge this",
    "unclear": "The prompt makes no sense",
    "harmful": "I do not want to read this",
    "other": "Something else",
}
MAX_NOTE = 1000  # characters of a note to a skip
MAX_SECONDS = 1e6
PATTERNS = {
    "id": "[0-9a-zA-Z]{16,64}",
    "instructions": "[0-9a-f]{64}",
    "kind": "vote|skip|undo",
}


class Refused(ValueError):
    """What was posted cannot be; ``status`` is HTTP's number for it."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Event:
    """One thing that an annotator did, as the page posts it."""

    id: str  # made by the page: the same thing sent twice counts once
    kind: str  # vote, skip or undo
    task: int | None  # None for an undo, which is of the last one
    value: dict[str, Any]  # {ranks} in the order shown, {rating}, {reason, note}, {}
    seconds: float  # that the page was looked at
    instructions: str  # sha256 of those on the page


def parse_event(body: Any, mode: Mode, scale: int) -> Event:
    """Checks what was posted, as far as that needs no task. No reference.

    Raises:
      Refused: with what was expected.

    >>> posted = {"id": "0" * 32, "kind": "vote", "task": 3, "ranks": [0, 1, 0],
    ...           "seconds": 4.5, "instructions": "a" * 64}
    >>> parse_event(posted, "ranking", 5).value
    {'ranks': [0, 1, 0]}
    """
    if not isinstance(body, dict):
        raise Refused("expected a JSON object")
    kind, task = body.get("kind"), body.get("task")
    for name, pattern in PATTERNS.items():
        if not re.fullmatch(pattern, str(body.get(name))):
            raise Refused(f"{name}: expected {pattern}")
    undo = kind == "undo" and task is None
    if not undo and (type(task) is not int or not 0 < task < 2**63):
        raise Refused("task: expected its number")
    seconds = body.get("seconds", math.nan)
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise Refused(f"seconds: expected a number from 0 to {MAX_SECONDS:g}")
    value = {"vote": _vote, "skip": _skip, "undo": lambda *_: {}}[str(kind)]
    return Event(
        id=str(body["id"]),
        kind=str(kind),
        task=task,
        value=value(body, mode, scale),
        seconds=float(seconds),
        instructions=str(body["instructions"]),
    )


def _vote(body: dict[str, Any], mode: Mode, scale: int) -> dict[str, Any]:
    if mode == "ranking":
        ranks = body.get("ranks")
        if (
            not isinstance(ranks, list)
            or not all(type(rank) is int for rank in ranks)
            or sorted(set(ranks)) != list(range(len(set(ranks))))
        ):
            raise Refused("ranks: expected whole numbers from 0 without gaps")
        return {"ranks": ranks}
    rating, most = body.get("rating"), 1 if mode == "yes_no" else scale
    least = 0 if mode == "yes_no" else 1
    if type(rating) is not int or not least <= rating <= most:
        raise Refused(f"rating: expected a whole number from {least} to {most}")
    return {"rating": rating}


def _skip(body: dict[str, Any], mode: Mode, scale: int) -> dict[str, Any]:
    reason, note = body.get("reason"), body.get("note", "")
    if reason not in REASONS:
        raise Refused(f"reason: expected one of {', '.join(REASONS)}")
    if not isinstance(note, str) or len(note) > MAX_NOTE:
        raise Refused(f"note: expected a text of at most {MAX_NOTE} characters")
    return {"reason": reason, "note": note.encode(errors="replace").decode()}


def record(db: sqlite3.Connection, annotator: int, event: Event) -> None:
    """Writes an event; on disk when this returns. No reference.

    An event that is there already is not written again. A second vote on a task takes
    the first one's place, and both stay in the log. An undo opens the task of this
    annotator's last judgement.

    Raises:
      Refused: 409 another event has that id, or nothing is left to undo; 404 no such
        task of this annotator; 400 unknown instructions, or not one rank a completion.
    """
    with transaction(db):
        known = db.execute("SELECT * FROM events WHERE id = ?", (event.id,)).fetchone()
        task = _task(db, annotator, event, known)
        value = json.dumps(_in_item_order(event.value, task))
        facts = annotator, task["id"], event.kind, value
        if known is not None:
            if tuple(known[x] for x in ("annotator", "task", "kind", "value")) != facts:
                raise Refused("another event has this id", 409)
            return
        asked = (event.instructions,)
        found = db.execute("SELECT 1 FROM instructions WHERE sha256 = ?", asked)
        if not found.fetchone():
            raise Refused("instructions: not those of this page; reload it")
        written = db.execute(
            "INSERT INTO events (annotator, task, kind, value, id, seconds, "
            "instructions, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*facts, event.id, event.seconds, event.instructions, utc_now()),
        )
        undo = event.kind == "undo"
        db.execute(
            "UPDATE tasks SET state = ?, event = ? WHERE id = ?",
            (
                "open" if undo else event.kind,
                None if undo else written.lastrowid,
                task["id"],
            ),
        )


def _task(
    db: sqlite3.Connection, annotator: int, event: Event, known: sqlite3.Row | None
) -> sqlite3.Row:
    if event.kind != "undo":
        wanted, where = event.task, "id = :task AND annotator = :annotator"
        missing = Refused("no such task of yours", 404)
    elif known is not None:  # an undo that was written already undid this one
        wanted, where = known["task"], "id = :task AND annotator = :annotator"
        missing = Refused("another event has this id", 409)
    else:
        wanted, where = None, "annotator = :annotator AND state != 'open'"
        missing = Refused("there is nothing to undo", 409)
    found = db.execute(
        f"SELECT * FROM tasks WHERE {where} ORDER BY event DESC LIMIT 1",
        {"task": wanted, "annotator": annotator},
    ).fetchone()
    if found is None:
        raise missing
    return found


def _in_item_order(value: dict[str, Any], task: sqlite3.Row) -> dict[str, Any]:
    """Ranks were given in the order shown; the item has an order of its own."""
    if "ranks" not in value:
        return value
    shown = json.loads(task["shown"])
    if len(value["ranks"]) != len(shown):
        raise Refused(f"ranks: expected {len(shown)}, one a completion")
    ranks = dict(zip(shown, value["ranks"], strict=True))
    return {"ranks": [ranks[i] for i in range(len(shown))]}
