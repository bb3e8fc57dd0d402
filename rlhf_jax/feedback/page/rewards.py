"""People in the loop: the ratings of the page as the rewards of a batch."""

import contextlib
import dataclasses
import json
import sqlite3
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page.items import Item
from rlhf_jax.feedback.page.store import add_items, connect

RATED = """
SELECT events.value FROM tasks JOIN events ON events.number = tasks.event
WHERE tasks.item = ? AND tasks.state = 'vote' AND NOT tasks.repeat"""


@dataclasses.dataclass(frozen=True)
class PageRewards:
    """A reward function whose answers people give. No reference.

    It puts the completions of a batch on the page of ``run_dir``, which another process
    serves with ``--mode yes_no`` or ``scale``, waits until each has the server's
    ``--votes``, and returns the mean rating of each: 0 … 1 for yes/no, 1 … scale else.
    What was rated before is not asked again, so that a run that starts again at its
    last checkpoint goes on from there.

    As ``--reward my_module:people``, where the module says

        people = PageRewards(Path("runs/people"), timeout=7200)
    """

    run_dir: Path
    timeout: float = 3600.0  # seconds for a batch
    poll: float = 0.5  # seconds between two looks

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> list[float]:
        """One number a completion.

        Raises:
          UserError: no server ever ran on ``run_dir``, it ranks, or ratings are missing
            after ``timeout``.
        """
        with contextlib.closing(connect(self.run_dir)) as db:
            votes = _votes_wanted(db, self.run_dir)
            items = [
                Item(prompt, (completion,))
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
            add_items(db, items)
            until = time.monotonic() + self.timeout
            while missing := _missing(db, items, votes):
                if time.monotonic() > until:
                    raise UserError(self._late(db, missing, votes))
                time.sleep(self.poll)
            return [statistics.fmean(_ratings(db, item.id)) for item in items]

    def _late(self, db: sqlite3.Connection, missing: list[str], votes: int) -> str:
        skipped = db.execute(
            "SELECT count(DISTINCT item) FROM tasks WHERE state = 'skip' AND item IN "
            "(SELECT value FROM json_each(?))",
            (json.dumps(missing),),
        ).fetchone()[0]
        return (
            f"{self.run_dir}: after {self.timeout:g} s {len(missing)} completions have "
            f"fewer than {votes} ratings ({skipped} of them were skipped); is the page "
            "served, and somebody rating? What is rated is kept: start again, or raise "
            "the time-out"
        )


def _votes_wanted(db: sqlite3.Connection, run_dir: Path) -> int:
    settings = {name: value for name, value in db.execute("SELECT * FROM settings")}
    if settings.get("mode") not in ("yes_no", "scale"):
        raise UserError(
            f"{run_dir}: the page's mode is {settings.get('mode')}; rewards are "
            "ratings: serve it with --mode yes_no or --mode scale"
        )
    return int(settings["votes"])


def _missing(db: sqlite3.Connection, items: list[Item], votes: int) -> list[str]:
    ids = dict.fromkeys(item.id for item in items)
    return [i for i in ids if len(_ratings(db, i)) < votes]


def _ratings(db: sqlite3.Connection, item: str) -> list[float]:
    return [json.loads(row["value"])["rating"] for row in db.execute(RATED, (item,))]
