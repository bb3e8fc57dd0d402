"""Who is shown what next, in which order, and how much is left."""

import json
import math
import random
import sqlite3
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_jax.feedback.page.store import transaction

LEASE = 1800.0  # seconds after which an item left open is offered to somebody else
REPEAT_GAP = 5  # an item comes again after at least so many others


@dataclass(frozen=True)
class Plan:
    """How items are shared out."""

    votes: int = 1  # annotators an item
    repeats: float = 0.0  # share of an annotator's items that come again
    seed: int = 0


class Progress(NamedTuple):
    """Of one annotator; ``left`` is a bound, where others may take some of it."""

    done: int
    left: int


# Items that this annotator has not seen, and that want more votes than they have or,
# counting tasks in progress, are about to have.
WAITING = """
SELECT id FROM items WHERE id NOT IN (
  SELECT item FROM tasks WHERE annotator = :annotator
) AND :votes > (
  SELECT count(*) FROM tasks WHERE item = items.id AND repeat = 0
  AND (state = 'vote' OR state = 'open' AND opened > :stale)
)"""


def next_task(
    db: sqlite3.Connection, annotator: int, plan: Plan
) -> dict[str, Any] | None:
    """What the annotator judges next, the same until it is judged. No reference.

    First what is open, earliest first: so a reload changes nothing, and what was undone
    comes back at once. Then a repeat, if one is due; then the first item that waits.

    Returns:
      ``{task, prompt, completions, previous}`` with the completions in the order in
      which they are shown; ``previous`` is the judgement that was undone, or None.
      None when nothing is left.
    """
    now = time.time()
    with transaction(db):
        task = db.execute(
            "SELECT id FROM tasks WHERE annotator = ? AND state = 'open' "
            "ORDER BY id LIMIT 1",
            (annotator,),
        ).fetchone()
        if task is not None:
            db.execute("UPDATE tasks SET opened = ? WHERE id = ?", (now, task["id"]))
            return _describe(db, task["id"])
        repeated = _due_repeat(db, annotator, plan)
        item = repeated or _waiting(db, annotator, plan, now)
        if item is None:
            return None
        order = _random_order(db, item, f"{plan.seed} {annotator} {item} {repeated}")
        added = db.execute(
            "INSERT INTO tasks (item, annotator, repeat, shown, opened) "
            "VALUES (?, ?, ?, ?, ?)",
            (item, annotator, repeated is not None, json.dumps(order), now),
        )
        return _describe(db, added.lastrowid)


def progress(db: sqlite3.Connection, annotator: int, plan: Plan) -> Progress:
    """How many tasks are done, and how many are left at most."""
    asked = _asked(annotator, plan, time.time())
    waiting = db.execute(f"SELECT count(*) FROM ({WAITING})", asked).fetchone()[0]
    done, opened, first, repeats = db.execute(
        "SELECT count(*) FILTER (WHERE state != 'open'), "
        "count(*) FILTER (WHERE state = 'open'), "
        "count(*) FILTER (WHERE state != 'skip' AND NOT repeat), "
        "coalesce(sum(repeat), 0) FROM tasks WHERE annotator = ?",
        (annotator,),
    ).fetchone()
    due = math.floor(plan.repeats * (first + waiting)) - repeats
    return Progress(done, opened + waiting + max(due, 0))


def _asked(annotator: int, plan: Plan, now: float) -> dict[str, Any]:
    return {"annotator": annotator, "votes": plan.votes, "stale": now - LEASE}


def _waiting(
    db: sqlite3.Connection, annotator: int, plan: Plan, now: float
) -> str | None:
    asked = _asked(annotator, plan, now)
    found = db.execute(f"{WAITING} ORDER BY number LIMIT 1", asked).fetchone()
    return None if found is None else found["id"]


def _due_repeat(db: sqlite3.Connection, annotator: int, plan: Plan) -> str | None:
    """One of the items judged a while ago, if there were too few repeats so far."""
    judged = db.execute(
        "SELECT item, repeat FROM tasks WHERE annotator = ? AND state = 'vote' "
        "ORDER BY event",
        (annotator,),
    ).fetchall()
    first = [row["item"] for row in judged if not row["repeat"]]
    again = {
        row["item"]
        for row in db.execute(
            "SELECT item FROM tasks WHERE annotator = ? AND repeat", (annotator,)
        )
    }
    if len(again) >= math.floor(plan.repeats * len(first)):
        return None
    able = [item for item in first[:-REPEAT_GAP] if item not in again]
    draw = random.Random(f"{plan.seed} {annotator} {len(first)}")
    return draw.choice(able) if able else None


def _random_order(db: sqlite3.Connection, item: str, seed: str) -> list[int]:
    found = db.execute("SELECT completions FROM items WHERE id = ?", (item,))
    order = list(range(len(json.loads(found.fetchone()["completions"]))))
    random.Random(seed).shuffle(order)
    return order


def _describe(db: sqlite3.Connection, task: int | None) -> dict[str, Any]:
    row = db.execute(
        "SELECT * FROM tasks JOIN items ON items.id = item WHERE tasks.id = ?", (task,)
    ).fetchone()
    before = db.execute(
        "SELECT value FROM events WHERE task = ? AND kind = 'vote' "
        "ORDER BY number DESC LIMIT 1",
        (task,),
    ).fetchone()
    completions, shown = json.loads(row["completions"]), json.loads(row["shown"])
    previous = None if before is None else json.loads(before["value"])
    if previous is not None and "ranks" in previous:
        previous = {"ranks": [previous["ranks"][i] for i in shown]}
    return {
        "task": task,
        "prompt": row["prompt"],
        "completions": [completions[i] for i in shown],
        "previous": previous,
    }
