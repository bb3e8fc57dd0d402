"""The overview's agreement is that of the command, however many have voted."""

import contextlib
import itertools
import json
import random
import time

import numpy as np
import pytest
from feedback.page.running import serving, write_rows

from rlhf_jax.data import read_rows
from rlhf_jax.feedback import Judged, krippendorff_alpha, measure_agreement
from rlhf_jax.feedback.page import ServeConfig, export
from rlhf_jax.feedback.page.items import Item, Mode
from rlhf_jax.feedback.page.overview import Judgement, agreement_so_far, overview
from rlhf_jax.feedback.page.store import (
    add_annotator,
    add_instructions,
    add_items,
    connect,
    transaction,
)
from rlhf_jax.feedback.page.tasks import Plan
from rlhf_jax.feedback.report import as_votes

pytest.importorskip("uvicorn")


def exported(folder, mode: Mode, noise: float) -> tuple[dict, Judged]:
    """(the overview, votes of the exported file) after three people and repeats."""
    rng, names = random.Random(0), ("ann", "ben", "eve")
    texts = ["a", "bb", "ccc"]
    rows = [{"prompt": f"p{i}", "completions": texts[: 3 - i % 2]} for i in range(16)]
    file = write_rows(folder / "c.jsonl", rows)
    options = {"mode": mode, "votes": 2, "repeats": 0.2, "annotators": names}
    with serving(ServeConfig(folder / "run", file, **options)) as page:
        waiting = set(names)
        while waiting:
            for name in sorted(waiting):
                found = page.task(name)
                if found["task"] is None:
                    waiting.discard(name)
                    continue
                wrong = lambda: (rng.random() < noise) * rng.choice((-1, 1))
                lengths = [
                    min(3, max(1, len(text) + wrong()))
                    for text in found["task"]["completions"]
                ]
                said = {"rating": lengths[0]}
                if mode == "ranking":
                    order = sorted(set(lengths))
                    said = {"ranks": [order.index(length) for length in lengths]}
                page.post(name, found, "vote", **said)
        shown = page.ask("(overview)", "/api/overview")[1]
        export(page.run_dir)
    name = "rankings" if mode == "ranking" else "ratings"
    return shown, as_votes(read_rows(folder / f"run/{name}.jsonl"))


@pytest.mark.parametrize("mode", ["ranking", "scale"])
def test_it_shows_what_the_command_says_of_the_exported_file(tmp_path, mode):
    shown, judged = exported(tmp_path, mode, noise=0.4)
    votes, again = judged.votes, judged.again
    alpha = krippendorff_alpha(votes, level="ordinal")
    assert 0.1 < alpha < 0.95 and shown["alpha"]["value"] == pytest.approx(alpha)
    assert shown["alpha"]["low"] < alpha < shown["alpha"]["high"]
    rng = np.random.default_rng(1)
    wanted = measure_agreement(votes, level="ordinal", rng=rng, resamples=2000)
    interval = [shown["alpha"]["low"], shown["alpha"]["high"]]
    assert interval == pytest.approx(wanted.alpha[1:], abs=0.1)
    assert shown["agreement"] == pytest.approx(wanted.percent.value)
    first = {
        (unit, who): value
        for unit, who, value in zip(
            votes.unit, votes.annotator, votes.value, strict=True
        )
    }
    for who, person in enumerate(shown["annotators"]):
        assert person["with_others"] == pytest.approx(wanted.each[who].value)
        own = again.annotator == who
        same = [
            first[unit, who] == value
            for unit, value in zip(again.unit[own], again.value[own], strict=True)
        ]
        assert person["repeats"] == len(set(votes.item[again.unit[own]])) > 0
        assert person["with_self"] == pytest.approx(np.mean(same))


def test_nothing_is_known_of_items_with_one_vote():
    alone = [Judgement("p", 0, (0, 1)), Judgement("q", 1, (1, 0))]
    assert agreement_so_far(alone) is None and agreement_so_far([]) is None


def test_percent_by_hand():
    """p: one of three pairs has another order; q: two tie what the third does not."""
    said = [Judgement("p", 0, (0, 1, 2)), Judgement("p", 1, (0, 2, 1))]
    said += [Judgement("q", who, ranks) for who, ranks in enumerate([(0, 0), (0, 0)])]
    said += [Judgement("q", 2, (0, 1)), Judgement("r", 2, (0, 1))]
    found = agreement_so_far(said)
    assert found is not None
    # Pairs of votes: three on p, two equal; three on q's one pair, one equal.
    assert found.percent.value == pytest.approx(3 / 6)
    assert [x.value for x in found.each] == pytest.approx([3 / 5, 3 / 5, 0])
    assert np.isnan(found.alpha.low)


@pytest.fixture
def labels(tmp_path):
    with contextlib.closing(connect(tmp_path, create=True)) as db:
        yield db


def fill(db, *, items: int, people: int, votes: int, ranks) -> None:
    """Judges without a page: many items in little time."""
    add_items(db, [Item(f"p{i}", tuple("abcd")) for i in range(items)])
    for who in range(people):
        add_annotator(db, f"n{who}")
    sha256, numbers = add_instructions(db, "Be fair."), itertools.count()
    with transaction(db):
        for (item,) in db.execute("SELECT id FROM items").fetchall():
            first = next(numbers)
            for who in range(first, first + votes):
                task = db.execute(
                    "INSERT INTO tasks (item, annotator, repeat, shown, opened, state) "
                    "VALUES (?, ?, 0, '[0, 1, 2, 3]', 0, 'vote')",
                    (item, who % people),
                ).lastrowid
                event = db.execute(
                    "INSERT INTO events (id, annotator, task, kind, value, seconds, "
                    "instructions, time) VALUES (?, ?, ?, 'vote', ?, 1.5, ?, '')",
                    (f"e{task}", who % people, task, ranks(), sha256),
                ).lastrowid
                db.execute("UPDATE tasks SET event = ? WHERE id = ?", (event, task))


def test_alpha_is_not_there_yet(labels):
    add_annotator(labels, "ann")
    found = overview(labels, Plan())
    assert found["alpha"] is None and found["agreement"] is None
    [ann] = found["annotators"]
    assert (ann["with_others"], ann["with_self"], ann["median_seconds"]) == 3 * (None,)
    # All say the same of everything: then chance agrees, too.
    tie = json.dumps({"ranks": [0, 0, 0, 0]})
    fill(labels, items=12, people=3, votes=2, ranks=lambda: tie)
    found = overview(labels, Plan())
    assert found["alpha"] is None and found["agreement"] == 1


def test_ten_thousand_votes_are_looked_at_in_a_moment(labels):
    rng = random.Random(0)
    ranks = lambda: json.dumps({"ranks": rng.sample(range(4), 4)})
    fill(labels, items=2000, people=20, votes=5, ranks=ranks)
    began = time.thread_time()
    found = overview(labels, Plan(votes=5))
    took = time.thread_time() - began
    assert found["votes"] == 10_000 and found["finished"] == 2000
    assert found["alpha"]["low"] < 0 < found["alpha"]["high"] + 0.01
    assert abs(found["alpha"]["value"]) < 0.03
    assert took < 2
