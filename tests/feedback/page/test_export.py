"""Files that training reads, and what people's ratings are as rewards."""

import contextlib
import json
import threading
from pathlib import Path

import pytest
from feedback.page.running import serving, wait_for, write_rows

from rlhf_jax.data import labels, rankings, read_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.__main__ import main
from rlhf_jax.feedback.page import PageRewards, ServeConfig, export
from rlhf_jax.feedback.page.items import Mode
from rlhf_jax.feedback.page.store import connect, settle
from rlhf_jax.rewards import call_reward_function

pytest.importorskip("uvicorn")


def configured(folder: Path, mode: Mode = "ranking", rows=(), **changes) -> ServeConfig:
    rows = rows or [{"prompt": f"p{i}", "completions": ["a", "b"]} for i in range(4)]
    file = write_rows(folder / "c.jsonl", list(rows))
    return ServeConfig(folder / "run", completions=file, mode=mode, **changes)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.fault(30)
def test_rankings_are_read_as_they_are(tmp_path):
    with serving(configured(tmp_path, repeats=0.5)) as page:
        for ranks in ([0, 1], [1, 0], [0, 0]):
            found = page.task("annotator")
            shown = found["task"]["completions"]
            wanted = dict(zip("ab", ranks, strict=True))
            page.post(
                "annotator", found, "vote", ranks=[wanted[text] for text in shown]
            )
        page.post(
            "annotator", page.task("annotator"), "skip", reason="unclear", note="?"
        )
        counts = export(page.run_dir)
    assert counts == {"rankings.jsonl": 3, "skips.jsonl": 1, "instructions.jsonl": 1}
    read = rankings(read_rows(page.run_dir / "rankings.jsonl"))
    assert [ranking.ranks for ranking in read] == [(0, 1), (1, 0), (0, 0)]
    assert {ranking.annotator for ranking in read} == {0}
    row = lines(page.run_dir / "rankings.jsonl")[0]
    assert row | {"item": "", "instructions": "", "time": "", "shown": []} == {
        "item": "",
        "prompt": "p0",
        "completions": ["a", "b"],
        "ranks": [0, 1],
        "annotator": 0,
        "annotator_name": "annotator",
        "shown": [],
        "repeat": False,
        "seconds": 1.5,
        "instructions": "",
        "time": "",
    }
    assert sorted(row["shown"]) == [0, 1] and row["time"].endswith("+00:00")
    [text] = lines(page.run_dir / "instructions.jsonl")
    assert text["sha256"] == row["instructions"] and "harmful prompt" in text["text"]
    [skip] = lines(page.run_dir / "skips.jsonl")
    assert (skip["prompt"], skip["skipped"], skip["note"]) == ("p3", "unclear", "?")


@pytest.mark.fault(30)
def test_what_was_undone_is_not_exported(tmp_path):
    with serving(configured(tmp_path)) as page:
        page.post("annotator", page.task("annotator"), "vote", ranks=[0, 1])
        page.post("annotator", page.task("annotator"), "undo")
        assert export(page.run_dir, tmp_path / "out")["rankings.jsonl"] == 0
        page.post("annotator", page.task("annotator"), "vote", ranks=[0, 0])
        export(page.run_dir, tmp_path / "out")
    [row] = lines(tmp_path / "out/rankings.jsonl")
    assert row["ranks"] == [0, 0]


def test_yes_and_no_are_labels(tmp_path):
    with serving(configured(tmp_path, "yes_no")) as page:
        for i in range(8):
            page.post("annotator", page.task("annotator"), "vote", rating=i % 2)
        assert page.task("annotator")["task"] is None
        assert export(page.run_dir)["ratings.jsonl"] == 8
    read = labels(read_rows(page.run_dir / "ratings.jsonl"))
    assert [(x.prompt, x.completion, x.label) for x in read[:3]] == [
        ("p0", "a", 0),
        ("p0", "b", 1),
        ("p1", "a", 0),
    ]


def test_ratings_on_a_scale(tmp_path):
    rows = [{"prompt": "p", "completion": " one"}]
    with serving(configured(tmp_path, "scale", rows, scale=7)) as page:
        assert page.task("annotator")["scale"] == 7
        page.post("annotator", page.task("annotator"), "vote", rating=7)
        export(page.run_dir)
    [row] = lines(page.run_dir / "ratings.jsonl")
    assert (row["completion"], row["rating"]) == (" one", 7) and "label" not in row


def test_edited_instructions_are_those_of_the_next_labels(tmp_path):
    file = tmp_path / "mine.md"
    file.write_text("# First")
    with serving(configured(tmp_path, instructions=file)) as page:
        found = page.task("annotator")
        file.write_text("# Second")
        following = page.post("annotator", found, "vote", ranks=[0, 1])
        assert following["instructions"]["text"] == "# Second"
        file.unlink()  # an editor that replaces the file
        following = page.post("annotator", following, "vote", ranks=[0, 1])
        assert following["instructions"]["text"] == "# Second"
        export(page.run_dir)
    texts = {t["sha256"]: t["text"] for t in lines(page.run_dir / "instructions.jsonl")}
    rows = lines(page.run_dir / "rankings.jsonl")
    assert [texts[row["instructions"]] for row in rows] == ["# First", "# Second"]


def test_the_overview_counts_and_compares(tmp_path):
    config = configured(tmp_path, annotators=("ann", "ben"), votes=2)
    with serving(config) as page:
        for _ in range(4):
            found = page.task("ann")
            page.post("ann", found, "vote", ranks=[0, 1])
        for i in range(3):
            mine = page.task("ben")
            with contextlib.closing(connect(page.run_dir)) as db:
                [theirs] = db.execute(
                    "SELECT value FROM tasks JOIN events ON events.number = event "
                    "JOIN items ON items.id = item WHERE prompt = ?",
                    (mine["task"]["prompt"],),
                ).fetchall()
            ranks = dict(zip("ab", json.loads(theirs["value"])["ranks"], strict=True))
            same = [ranks[text] for text in mine["task"]["completions"]]
            page.post("ben", mine, "vote", ranks=same if i else [0, 0])
        status, found = page.ask("(overview)", "/api/overview")
    assert status == 200
    assert (found["items"], found["finished"], found["votes"]) == (4, 3, 7)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["alpha"]["value"] < 1 and found["alpha"]["low"] is None  # three items
    ann, ben = found["annotators"]
    assert (ann["votes"], ben["votes"], ann["median_seconds"]) == (4, 3, 1.5)
    assert ann["with_others"] == pytest.approx(2 / 3) and ann["with_self"] is None


def person(page, rating_of) -> None:
    """Rates what comes until it has seen six items."""
    for _ in range(6):
        wait_for(lambda: page.task("annotator")["task"])
        found = page.task("annotator")
        [text] = found["task"]["completions"]
        page.post("annotator", found, "vote", rating=rating_of(text))


def test_ratings_are_the_rewards_of_a_batch(tmp_path):
    config = ServeConfig(tmp_path / "run", mode="scale")
    with serving(config) as page:
        simulated = threading.Thread(target=person, args=(page, len))
        simulated.start()
        people = PageRewards(page.run_dir, timeout=8, poll=0.02)
        first = ["p"] * 4, ["a", "bb", "ccc", "a"]
        assert call_reward_function(people, *first).tolist() == [1, 2, 3, 1]
        assert people(["q"] * 3, ["dddd", "ee", "a"]) == [4, 2, 1]
        simulated.join()
        # A run that starts again asks the same once more, and nobody is asked.
        assert people(*first) == [1, 2, 3, 1]


def test_a_reward_is_the_mean_of_the_ratings_wanted(tmp_path):
    config = ServeConfig(
        tmp_path / "run", mode="yes_no", annotators=("ann", "ben"), votes=2
    )
    with serving(config) as page:
        impatient = PageRewards(page.run_dir, timeout=0.1, poll=0.02)
        with pytest.raises(UserError, match="1 completions have fewer than 2 ratings"):
            impatient(["p"], ["a"])
        page.post("ann", page.task("ann"), "vote", rating=1)
        with pytest.raises(UserError, match="after 0.1 s"):
            impatient(["p"], ["a"])
        page.post("ben", page.task("ben"), "vote", rating=0)
        assert impatient(["p"], ["a"]) == [0.5]


def test_rankings_are_no_rewards(tmp_path):
    with pytest.raises(UserError, match="no labels.sqlite"):
        PageRewards(tmp_path)(["p"], ["a"])
    with contextlib.closing(connect(tmp_path, create=True)) as db:
        settle(db, mode="ranking", scale=5, votes=1)
    with pytest.raises(UserError, match="--mode yes_no or --mode scale"):
        PageRewards(tmp_path)(["p"], ["a"])


def test_the_command_exports(tmp_path, capsys):
    with serving(configured(tmp_path)) as page:
        page.post("annotator", page.task("annotator"), "vote", ranks=[0, 1])
    main(["export", str(page.run_dir), "--out", str(tmp_path / "out")])
    assert "rankings.jsonl: 1 rows" in capsys.readouterr().out
    assert rankings(read_rows(tmp_path / "out/rankings.jsonl"))
    no_folder = tmp_path / "out/rankings.jsonl"
    with pytest.raises(SystemExit, match="error: .*no folder.* another --out"):
        main(["export", str(page.run_dir), "--out", str(no_folder)])
    with pytest.raises(SystemExit, match="error: .*no labels.sqlite"):
        main(["export", str(tmp_path)])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--votes", "2"], "at most the number of annotators, 1"),
        (["--annotators", "a", "a"], "each name once"),
        (["--prompts", "p.jsonl"], "--prompts and --policy: expected both"),
        (["--host", "0.0.0.0"], "name the address that they use with --public"),
        (["--public", "https://a.example/x"], "an origin without a path"),
        (["--scale", "1"], "expected 2 … 10"),
        (["--instructions", "no.md"], "--instructions no.md: cannot be read"),
        (["--completions", "no.jsonl"], "no such file"),
        (["--policy", "no", "--prompts", "no.jsonl"], "no such file"),
        (["--host", "127.0.0.999"], "others can reach it"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(tmp_path, options, message):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--run-dir", str(tmp_path / "run"), "--port", "0", *options])
    assert message in str(stopped.value) and "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "p"}, "no column 'completions'; the columns are prompt;"),
        (
            {"prompt": "p", "completions": "a"},
            "'completions': expected a list of texts, found 'a'",
        ),
        ({"prompt": 3, "completions": ["a", "b"]}, "'prompt': expected text"),
        ({"prompt": "p", "completions": ["a", None]}, "'completions': expected text"),
        ({"prompt": "p", "completions": ["a", "\ud800"]}, "lone surrogates"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(UserError, match="c.jsonl:1: ") as error:
        with serving(configured(tmp_path, rows=[row])):
            pass
    assert message in str(error.value)
