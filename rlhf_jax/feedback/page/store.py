"""One SQLite file: items, annotators, what was shown to whom, and all that they did.

Write-ahead log, and a commit is on disk before it returns (synchronous = FULL). What
people did is a log that only grows; a task points at the entry that counts.
"""

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page.items import Item

LABELS_FILE = "labels.sqlite"

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (
  name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS instructions (
  sha256 TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS annotators (
  id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, token TEXT UNIQUE NOT NULL
  ) STRICT;
CREATE TABLE IF NOT EXISTS items (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL,
  prompt TEXT NOT NULL, completions TEXT NOT NULL) STRICT;
-- An item before an annotator; the second time it is a repeat.
CREATE TABLE IF NOT EXISTS tasks (
  id INTEGER PRIMARY KEY,
  item TEXT NOT NULL REFERENCES items (id),
  annotator INTEGER NOT NULL REFERENCES annotators (id),
  repeat INTEGER NOT NULL,
  shown TEXT NOT NULL, -- order of the completions on screen
  opened REAL NOT NULL, -- seconds since 1970
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'vote', 'skip')),
  event INTEGER REFERENCES events (number), -- what counts; NULL while open
  UNIQUE (item, annotator, repeat)) STRICT;
CREATE INDEX IF NOT EXISTS tasks_of ON tasks (annotator, state);
-- All that annotators did. The page makes the id: what it sends twice counts once.
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
  annotator INTEGER NOT NULL, task INTEGER NOT NULL REFERENCES tasks (id),
  kind TEXT NOT NULL CHECK (kind IN ('vote', 'skip', 'undo')),
  value TEXT NOT NULL, seconds REAL NOT NULL, instructions TEXT NOT NULL,
  time TEXT NOT NULL) STRICT;
"""


def connect(run_dir: Path, *, create: bool = False) -> sqlite3.Connection:
    """Opens the labels of a run directory, for this user alone. No reference.

    Args:
      run_dir: of the labels.
      create: makes them where there are none.

    Raises:
      UserError: there are none, or the file is something else or cannot be written.
    """
    path = run_dir / LABELS_FILE
    try:
        if create:
            run_dir.mkdir(parents=True, exist_ok=True)
            # Tokens are in it. SQLite gives its other files the same mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        elif not path.is_file():
            raise UserError(
                f"{run_dir}: no {LABELS_FILE}; expected the --run-dir of "
                "python -m rlhf_jax.feedback serve"
            )
        db = sqlite3.connect(
            path, timeout=30, isolation_level=None, check_same_thread=False
        )
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.executescript(SCHEMA)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{path}: cannot be opened ({error}); choose another --run-dir"
        ) from error
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, with no other writer in between; on disk when it ends.

    One within another is a part of that.
    """
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def add_items(db: sqlite3.Connection, items: Iterable[Item]) -> int:
    """Adds those that are not there yet; returns how many those were."""
    with transaction(db):
        before = db.total_changes
        db.executemany(
            "INSERT OR IGNORE INTO items (id, prompt, completions) VALUES (?, ?, ?)",
            ((item.id, item.prompt, json.dumps(item.completions)) for item in items),
        )
        return db.total_changes - before


def add_annotator(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    """The annotator of that name, with a number and a token that last."""
    with transaction(db):
        db.execute(
            "INSERT OR IGNORE INTO annotators (id, name, token) "
            "VALUES ((SELECT count(*) FROM annotators), ?, ?)",
            (name, secrets.token_urlsafe(24)),
        )
    found = db.execute("SELECT * FROM annotators WHERE name = ?", (name,))
    return found.fetchone()


def add_instructions(db: sqlite3.Connection, text: str) -> str:
    """Keeps a text of instructions; returns the hash that labels name it by."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    with transaction(db):
        db.execute("INSERT OR IGNORE INTO instructions VALUES (?, ?)", (sha256, text))
    return sha256


def settle(db: sqlite3.Connection, *, mode: str, scale: int, votes: int) -> None:
    """Keeps how this run is labelled; mode and scale are those of its first start.

    Raises:
      UserError: another mode or scale.
    """
    with transaction(db):
        db.execute("INSERT OR REPLACE INTO settings VALUES ('votes', ?)", (str(votes),))
        for name, value in (("mode", mode), ("scale", str(scale))):
            pinned = (name, value)
            db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", pinned)
            [(first,)] = db.execute(
                "SELECT value FROM settings WHERE name = ?", (name,)
            )
            if first != value:
                raise UserError(
                    f"--{name} {value}: this run was started with --{name} {first}; "
                    "give that one, or another --run-dir"
                )


def utc_now() -> str:
    """ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
