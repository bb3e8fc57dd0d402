"""The page in a browser: two people label at once, and a model learns from it."""

import json
from typing import Any

import pytest
from feedback.page.browsing import answers, axe, count, opened, save
from feedback.page.running import Running, serving, write_rows

from experiments import reward_model
from experiments.inputs import DataConfig
from rlhf_jax.feedback.page import ServeConfig, export
from rlhf_jax.feedback.page.items import Item
from rlhf_jax.feedback.page.store import add_items, connect
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig

pytest.importorskip("uvicorn")
TOY = TransformerConfig(
    vocab_size=280,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    d_head=8,
    d_ff=32,
    max_length=64,
)


def goodness(text: str) -> int:
    """How good an answer is: the people here like what is warm."""
    return text.count("warm") - text.count("cold")


def places(page: Any) -> list[int]:
    """The place of each answer as shown, equal ones tied: 0, 1, 1, …"""
    found = list(map(goodness, answers(page)))
    return [sorted(set(found), reverse=True).index(x) for x in found]


def by_keys(page: Any) -> None:
    """Judges without touching the pointer."""
    for place in places(page):
        page.keyboard.press(str(place + 1))
    save(page, press=True)


def by_pointer(page: Any) -> None:
    for i, place in enumerate(places(page)):
        page.click(f"label[for=place-{i}-{place}]")
    save(page, press=False)


def reviews() -> list[dict[str, Any]]:
    """20 prompts with an order that is plain, two of them with a tie."""
    words = [" warm, warm.", " warm.", " cold."]
    rows = [{"prompt": f"Film {i} is", "completions": words} for i in range(20)]
    for i in (3, 11):
        rows[i] = rows[i] | {"completions": [" warm.", " so warm.", " cold."]}
    return rows


def two_people(first: Any, second: Any) -> None:
    """Label everything, in turn: with an undo, a skip, and reloads on the way."""
    for step in range(20):
        if step == 5:  # a reload in the middle of a task changes nothing
            before = answers(first)
            first.keyboard.press("2")
            first.reload()
            first.wait_for_selector("#form:visible")
            assert answers(first) == before and count(first) == 5
        if step == 8:  # a wrong judgement, undone; it comes back as it was given
            for _ in range(3):
                first.keyboard.press("1")
            before = answers(first)
            assert first.inner_text("#order") == "Your order: A = B = C"
            save(first, press=True)
            first.keyboard.press("u")
            first.wait_for_selector("#count:text-matches('^8 of')")
            assert answers(first) == before
            assert first.locator("#answers input:checked").count() == 3
        if step == 12:
            second.click("#skip")
            second.check("#reasons label:has-text('makes no sense')")
            second.fill("#note", "which film?")
            second.click("#skip-form .main")
            second.wait_for_selector("#count:text-matches('^13 of')")
        else:
            by_pointer(second)
        by_keys(first)
    for page in (first, second):
        page.wait_for_selector("text=Nothing is left for you to judge")
        assert page.problems == []


def test_two_people_label_and_a_reward_model_learns_from_it(browser, tmp_path):
    config = ServeConfig(
        tmp_path / "run",
        completions=write_rows(tmp_path / "c.jsonl", reviews()),
        annotators=("ann", "ben"),
        votes=2,
    )
    with serving(config) as page:
        pages = [opened(browser, page.links[name]) for name in ("ann", "ben")]
        two_people(*pages)
        look = opened(browser, page.links["(overview)"])
        assert "19 of 20 items have the 2 judgements" in look.inner_text("#count")
        assert "100 %" in look.inner_text("#numbers")
        assert "1.00 (1.00\u00a0to\u00a01.00)" in look.inner_text("#numbers")
        assert "unclear 1" in look.inner_text("#numbers")
        for window in (*pages, look):
            window.context.close()
        counts = export(page.run_dir)
    assert counts == {"rankings.jsonl": 39, "skips.jsonl": 1, "instructions.jsonl": 1}
    file = tmp_path / "run/rankings.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        by_rank = sorted(zip(row["ranks"], row["completions"], strict=True))
        liked = [goodness(text) for _, text in by_rank]
        assert liked == sorted(liked, reverse=True)
        ties = len(row["ranks"]) - len(set(row["ranks"]))
        assert ties == (row["prompt"] in ("Film 3 is", "Film 11 is"))
        assert 0 <= row["seconds"] < 60
    assert any(row["seconds"] for row in rows)
    assert len({tuple(row["shown"]) for row in rows}) == 6
    found = reward_model.main(
        reward_model.Config(
            tmp_path / "reward",
            DataConfig(str(file), eval_fraction=0.2),
            kind="pairwise",
            model=TOY,
            optim=OptimConfig(learning_rate=1e-2, schedule="constant"),
            batch_size=8,
            epochs=10,
            devices=1,
        )
    )
    [accuracy] = (x for name, x in found.items() if name.endswith("eval_accuracy"))
    assert accuracy >= 0.9, found


@pytest.mark.parametrize("mode, key, rating", [("yes_no", "n", 0), ("scale", "4", 4)])
def test_one_answer_is_rated_by_keys_and_by_pointer(
    browser, tmp_path, mode, key, rating
):
    rows = [{"prompt": "p", "completions": ["a", "b", "c"]}]
    file = write_rows(tmp_path / "c.jsonl", rows)
    config = ServeConfig(tmp_path / "run", completions=file, mode=mode)
    with serving(config) as served:
        page = opened(browser, served.links["annotator"])
        assert axe(page) == []
        page.keyboard.press(key)
        save(page, press=True)
        page.click(f"label[for=rating-{0 if mode == 'yes_no' else 4}]")
        save(page, press=False)
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.bad:has-text('Choose')")
        assert ratings(served) == [rating, 1 if mode == "yes_no" else 5]
        page.context.close()


def ratings(page: Running) -> list[int]:
    export(page.run_dir)
    lines = (page.run_dir / "ratings.jsonl").read_text().splitlines()
    return [json.loads(line)["rating"] for line in lines]


def test_new_items_appear_by_themselves(browser, tmp_path):
    """People in the loop: the next batch comes while the page is open."""
    with serving(ServeConfig(tmp_path / "run", mode="yes_no")) as served:
        page = opened(browser, served.links["annotator"])
        db = connect(served.run_dir)
        add_items(db, [Item("p", ("new",))])
        db.close()
        page.wait_for_selector("#answers:has-text('new')")
        assert "new" in page.inner_text("#answers")
        assert not page.is_visible("#notice")
        page.context.close()
