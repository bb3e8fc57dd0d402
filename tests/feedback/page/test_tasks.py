"""Who gets what, in which order; what counts after undo, skip and second thoughts."""

import contextlib
import json
from collections import Counter
from typing import Any

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page import tasks
from rlhf_jax.feedback.page.events import Event, Refused, parse_event, record
from rlhf_jax.feedback.page.items import Item
from rlhf_jax.feedback.page.overview import overview
from rlhf_jax.feedback.page.store import (
    add_annotator,
    add_instructions,
    add_items,
    connect,
    settle,
    transaction,
)
from rlhf_jax.feedback.page.tasks import Plan, next_task, progress


@pytest.fixture
def db(tmp_path):
    with contextlib.closing(connect(tmp_path, create=True)) as db:
        add_items(db, [Item(f"p{i}", ("a", "b", "c")) for i in range(20)])
        for name in ("ann", "ben", "eve"):
            add_annotator(db, name)
        yield db


def judge(db, who: int, task, *, kind="vote", id: str = "", **value) -> None:
    sha256 = add_instructions(db, "Be fair.")
    value = value or {"vote": {"ranks": [0, 1, 2]}, "undo": {}}.get(
        kind, {"reason": "unsure", "note": ""}
    )
    number = None if task is None else task["task"]
    id = id or f"{db.total_changes:032d}"
    record(db, who, Event(id, kind, number, value, 2.0, sha256))


def offered(db, who: int, plan: Plan) -> dict[str, Any]:
    """The next task, where there is one."""
    task = next_task(db, who, plan)
    assert task is not None
    return task


def judge_all(db, plan: Plan, *people: int) -> Counter:
    """All that is left, the people in turn; how often each got each prompt."""
    seen: Counter = Counter()
    while any(shown := {who: next_task(db, who, plan) for who in people}.values()):
        for who, task in zip(people, shown, strict=True):
            if task is not None:
                seen[who, task["prompt"]] += 1
                judge(db, who, task)
    return seen


def test_each_item_gets_as_many_annotators_as_are_wanted(db):
    seen = judge_all(db, Plan(votes=2), 0, 1, 2)
    by_prompt = Counter(prompt for _, prompt in seen)
    assert set(by_prompt.values()) == {2} and len(by_prompt) == 20
    assert set(seen.values()) == {1}
    assert len({who for who, _ in seen}) == 3


def test_a_task_in_progress_counts_until_its_lease_ends(db, monkeypatch):
    plan = Plan(votes=1)
    mine = offered(db, 0, plan)
    assert offered(db, 1, plan)["prompt"] != mine["prompt"]
    monkeypatch.setattr(tasks, "LEASE", -1.0)
    assert offered(db, 2, plan)["prompt"] == mine["prompt"]


def test_what_is_open_comes_again(db):
    first = offered(db, 0, Plan())
    assert offered(db, 0, Plan()) == first


@pytest.mark.fault(30)
def test_a_skipped_item_goes_to_somebody_else(db):
    first = offered(db, 0, Plan())
    judge(db, 0, first, kind="skip")
    assert offered(db, 0, Plan())["prompt"] != first["prompt"]
    assert offered(db, 1, Plan())["prompt"] == first["prompt"]
    assert overview(db, Plan())["skips"] == {"unsure": 1}


def test_orders_are_random_per_annotator_and_the_same_again(db):
    plan, orders = Plan(votes=3), {}
    for who in range(3):
        for _ in range(20):
            task = offered(db, who, plan)
            judge(db, who, task)
            orders[who, task["prompt"]] = tuple(task["completions"])
    assert len(set(orders.values())) == 6  # all orders of three come about
    assert any(orders[0, f"p{i}"] != orders[1, f"p{i}"] for i in range(20))
    recorded = db.execute("SELECT shown, annotator, item FROM tasks").fetchall()
    prompts = {row["id"]: row["prompt"] for row in db.execute("SELECT * FROM items")}
    for row in recorded:
        shown = tuple("abc"[i] for i in json.loads(row["shown"]))
        assert shown == orders[row["annotator"], prompts[row["item"]]]


def test_ranks_are_kept_in_the_items_own_order(db):
    task = offered(db, 0, Plan(seed=1))
    wanted = {"a": 1, "b": 0, "c": 1}
    judge(db, 0, task, ranks=[wanted[text] for text in task["completions"]])
    [row] = db.execute("SELECT value FROM events").fetchall()
    assert json.loads(row["value"]) == {"ranks": [1, 0, 1]}


def test_a_share_of_the_items_comes_twice_after_a_while(db):
    plan, order, shown = Plan(votes=1, repeats=0.2), [], {}
    while task := next_task(db, 0, plan):
        done, left = progress(db, 0, plan)
        assert done + left == 24
        order.append(task["prompt"])
        shown.setdefault(task["prompt"], []).append(task["completions"])
        judge(db, 0, task)
    twice = [prompt for prompt, times in Counter(order).items() if times == 2]
    assert len(order) == 24 and len(twice) == 4
    for prompt in twice:
        first = order.index(prompt)
        assert order.index(prompt, first + 1) - first > tasks.REPEAT_GAP
    assert any(shown[prompt][0] != shown[prompt][1] for prompt in twice)
    [ann, *_] = overview(db, plan)["annotators"]
    assert (ann["repeats"], ann["votes"]) == (4, 24)


@pytest.mark.fault(30)
def test_undo_brings_back_the_last_judgement_and_then_the_one_before(db):
    plan, shown = Plan(), []
    for ranks in ([0, 1, 1], [2, 1, 0]):
        shown.append(offered(db, 0, plan))
        judge(db, 0, shown[-1], ranks=ranks)
    offered(db, 0, plan)
    judge(db, 0, None, kind="undo")
    back = offered(db, 0, plan)
    assert back == shown[1] | {"previous": {"ranks": [2, 1, 0]}}
    judge(db, 0, None, kind="undo")
    assert offered(db, 0, plan) == shown[0] | {"previous": {"ranks": [0, 1, 1]}}
    assert progress(db, 0, plan).done == 0
    with pytest.raises(Refused, match="nothing to undo"):
        judge(db, 0, None, kind="undo")


def test_undo_is_of_ones_own_judgement(db):
    judge(db, 0, offered(db, 0, Plan()))
    with pytest.raises(Refused, match="nothing to undo"):
        judge(db, 1, None, kind="undo")


@pytest.mark.fault(30)
def test_sent_twice_counts_once(db):
    first = offered(db, 0, Plan())
    for _ in range(2):
        judge(db, 0, first, id="v" * 32)
    second = offered(db, 0, Plan())
    judge(db, 0, second)
    for _ in range(2):  # the second undo would otherwise open the first task, too
        judge(db, 0, None, kind="undo", id="u" * 32)
    assert db.execute("SELECT count(*) FROM events").fetchone()[0] == 3
    assert progress(db, 0, Plan()).done == 1
    with pytest.raises(Refused, match="another event") as refused:
        judge(db, 0, second, id="v" * 32)
    assert refused.value.status == 409


@pytest.mark.fault(30)
def test_a_changed_vote_counts_and_the_first_stays_in_the_log(db):
    task = offered(db, 0, Plan())
    judge(db, 0, task, ranks=[0, 1, 2])
    judge(db, 0, task, ranks=[2, 1, 0])
    assert db.execute("SELECT count(*) FROM events").fetchone()[0] == 2
    [counted] = db.execute(
        "SELECT value FROM tasks JOIN events ON events.number = event"
    ).fetchall()
    order = dict(zip(task["completions"], [2, 1, 0], strict=True))
    assert json.loads(counted["value"])["ranks"] == [order[text] for text in "abc"]


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ranks": [0, 1]}, "expected 3"),
        ({"task": 99}, "no such task"),
        ({"instructions": "0" * 64}, "instructions"),
    ],
)
def test_a_vote_must_fit_its_task(db, changes, message):
    task = offered(db, 0, Plan())
    posted = {
        "id": "a" * 32,
        "kind": "vote",
        "task": task["task"],
        "ranks": [0, 1, 2],
        "seconds": 1,
        "instructions": add_instructions(db, "Be fair."),
    }
    with pytest.raises(Refused, match=message):
        record(db, 0, parse_event(posted | changes, "ranking", 5))
    assert progress(db, 0, Plan()).done == 0


@pytest.mark.fault(30)
def test_somebody_else_s_task_takes_no_vote(db):
    """Nor does one of a person who is not known; what was counted before stays."""
    task = offered(db, 0, Plan())
    judge(db, 0, task, ranks=[0, 1, 2])
    for who in (1, 99):
        with pytest.raises(Refused, match="no such task"):
            judge(db, who, task, id=f"{who:032d}", ranks=[2, 1, 0])
    assert db.execute("SELECT count(*) FROM events").fetchone()[0] == 1
    assert progress(db, 0, Plan()).done == 1


@pytest.mark.fault(30)
def test_an_item_that_is_no_longer_in_the_file_stays_with_its_labels(db):
    task = offered(db, 0, Plan())
    judge(db, 0, task)
    add_items(db, [Item("p3", ("a", "b", "c"))])  # the file of a later start
    assert db.execute("SELECT count(*) FROM items").fetchone()[0] == 20
    assert progress(db, 0, Plan()).done == 1


@pytest.mark.fault(30)
def test_unsure_is_a_skip_and_no_vote(db):
    task = offered(db, 0, Plan())
    judge(db, 0, task, kind="skip")
    assert overview(db, Plan())["skips"] == {"unsure": 1}
    votes = db.execute("SELECT count(*) FROM events WHERE kind = 'vote'")
    assert votes.fetchone()[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "x"},
        {"id": "../../../etc/passwd"},
        {"kind": "delete"},
        {"kind": None},
        {"task": "3"},
        {"task": 2**70},
        {"task": None},
        {"ranks": None},
        {"ranks": [0, 2, 2]},
        {"ranks": [1, 2, 3]},
        {"ranks": [0.0, 1.0, 2.0]},
        {"ranks": [True, False, 0]},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": "3"},
        {"instructions": "\ud800"},
        {"kind": "skip", "reason": "bored"},
        {"kind": "skip", "reason": "other", "note": "x" * 1001},
    ],
)
def test_what_is_posted_is_checked(changes):
    posted = {
        "id": "a" * 32,
        "kind": "vote",
        "task": 3,
        "ranks": [0, 1, 2],
        "seconds": 1,
        "instructions": "0" * 64,
    }
    parse_event(posted, "ranking", 5)
    with pytest.raises(Refused):
        parse_event(posted | changes, "ranking", 5)


@pytest.mark.parametrize("mode, least, most", [("yes_no", 0, 1), ("scale", 1, 5)])
def test_ratings_lie_on_their_scale(mode, least, most):
    posted = {"id": "a" * 32, "kind": "vote", "task": 3, "seconds": 1}
    posted["instructions"] = "0" * 64
    for rating in (least, most):
        assert (
            parse_event(posted | {"rating": rating}, mode, 5).value["rating"] == rating
        )
    for rating in (least - 1, most + 1, None, 0.5, True):
        with pytest.raises(Refused, match="rating"):
            parse_event(posted | {"rating": rating}, mode, 5)


@pytest.mark.fault(31)
def test_a_commit_is_on_disk_before_it_returns(db):
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


@pytest.mark.fault(31)
def test_what_fails_half_way_leaves_nothing(db):
    with pytest.raises(RuntimeError), transaction(db):
        add_items(db, [Item("new", ("a", "b"))])
        raise RuntimeError
    assert db.execute("SELECT count(*) FROM items").fetchone()[0] == 20
    assert not db.in_transaction


def test_tokens_are_for_the_owner_alone(db, tmp_path):
    add_annotator(db, "new")
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_run_keeps_its_mode(db):
    settle(db, mode="scale", scale=5, votes=1)
    settle(db, mode="scale", scale=5, votes=3)
    with pytest.raises(UserError, match="--mode yes_no: this run was started with"):
        settle(db, mode="yes_no", scale=5, votes=1)
    with pytest.raises(UserError, match="--scale 7: this run was started with"):
        settle(db, mode="scale", scale=7, votes=1)


def test_no_labels_there(tmp_path):
    with pytest.raises(UserError, match="no labels.sqlite"):
        connect(tmp_path)
