"""The simulated crowd and active choice as scripts, at toy size."""

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import (
    active,
    careless,
    crowd,
    crowd_report,
    label_pool,
    reward_model,
)
from experiments.label_curves import needed
from experiments.simulation import gold_pairs, judge, make_crowd
from rlhf_jax.data import Row, preferences, rankings, read_rows
from rlhf_jax.data.grammar import POLARITY, gold_sentiment, sample_review
from rlhf_jax.errors import UserError

SIZE = {"d_model": 8, "n_heads": 1, "n_kv_heads": 1, "d_head": 8, "d_ff": 8}


def rows(count: int) -> list[Row]:
    values = {"prompt": "p", "completions": ["a", "b", "c"], "golds": [0.1, 0.9, -0.5]}
    return [Row(values, "simulated", n + 1) for n in range(count)]


def test_a_crowd_of_careful_and_careless():
    people = make_crowd(8, 2)
    assert [p.careless for p in people] == 8 * [False] + 2 * [True]
    assert [p.first for p in people[8:]] == [False, True]
    judged = judge(rows(400), people, votes=3, rng=random.Random(0))
    assert len(judged) == 1200 and len({(j["item"], j["annotator"]) for j in judged})
    first_right = {}
    for who, person in enumerate(people):
        own = [j for j in judged if j["annotator"] == who]
        first_right[who] = np.mean([j["ranks"] == [1, 0, 2] for j in own])
        as_shown = [[j["ranks"][i] for i in j["shown"]] == [0, 1, 2] for j in own]
        assert np.mean(as_shown) == pytest.approx(1 if person.first else 1 / 6, abs=0.1)
    # Plackett–Luce: 0.99 at a temperature of 0.08, 0.79 at 0.32; 1/6 at random.
    assert first_right[0] > 0.96 > 0.88 > first_right[7] > 0.7 > 0.3 > first_right[8]
    parsed = rankings(Row(j, "x", 1) for j in judged)
    assert parsed[0].annotator == judged[0]["annotator"]


def test_gold_pairs_by_hand():
    values = {"prompt": "p", "completions": ["a", "b", "c"], "golds": [0.5, 0.5, -1.0]}
    pairs = gold_pairs([Row(values, "x", 1)])
    assert {(p["chosen"], p["rejected"]) for p in pairs} == {("a", "c"), ("b", "c")}


@pytest.fixture
def small(monkeypatch):
    """A few rankings, as TinyReviews has them; compiled programs are all tests' own."""
    rng = random.Random(0)

    def load(part: str, split: str, data_dir: Path) -> list[Row]:
        texts = [[sample_review(rng) for _ in range(4)] for _ in range(100)]
        golds = [[gold_sentiment(text) for text in some] for some in texts]
        return [
            Row({"prompt": f"{split} {n} :", "completions": c, "golds": g}, split, n)
            for n, (c, g) in enumerate(zip(texts, golds, strict=True))
        ]

    monkeypatch.setattr(crowd, "load_tiny_reviews", load)
    for script in (crowd, active):
        monkeypatch.setattr(script, "keep_compiled", lambda path: None)


def test_the_crowd_s_script(small, tmp_path, monkeypatch, capsys):
    model = dataclasses.replace(crowd.Config.model, **SIZE)
    config = crowd.Config(
        tmp_path, (0,), items=90, updates=2, eval_items=10, batch_size=32, model=model
    )
    trained, real = [], reward_model.main

    def train(asked: reward_model.Config) -> dict[str, float]:
        trained.append(asked)
        if len(trained) > 1:  # one real one will do
            return {"reward/eval_accuracy": 0.5}
        return real(asked)

    monkeypatch.setattr(crowd.reward_model, "main", train)
    results = crowd.main(config)
    assert [r["arm"] for r in results] == ["all", "consensus", "careful"]
    assert 0 < results[0]["accuracy"] < 1 and results[0]["pairs"] == 90 * 5 * 6
    for result, asked in zip(results, trained, strict=True):  # as many updates for all
        updates = asked.epochs * (result["pairs"] // asked.batch_size)
        assert updates == config.updates
    shown = capsys.readouterr().out
    assert re.search("[34] of 4 careless people named, and 0 careful ones", shown)
    consensus = preferences(read_rows(tmp_path / "seed0/consensus.jsonl"))
    assert sum(p.weight for p in consensus) == pytest.approx(90, abs=1e-2)
    # As often as the truth allows it: careful people are not exact.
    right = [gold_sentiment(p.chosen) > gold_sentiment(p.rejected) for p in consensus]
    assert np.average(right, weights=[p.weight for p in consensus]) > 0.8
    careful = rankings(read_rows(tmp_path / "seed0/careful.jsonl"))
    assert {r.annotator for r in careful} == set(range(16))
    assert (tmp_path / "crowd.png").stat().st_size > 1000
    assert "consensus of all votes" in (tmp_path / "table.md").read_text()
    crowd.main(config)
    assert len(trained) == 3  # what has a result is not trained again


def test_careless_people_are_counted(tmp_path, monkeypatch, capsys):
    sizes = (careless.Crowd(4, 40, 10, 2), careless.Crowd(4, 12, 10, 0))
    monkeypatch.setattr(careless, "CROWDS", sizes)
    config = careless.Config(tmp_path, crowds=2, resamples=100)
    rows = careless.main(config)
    assert rows[0][:4] == ["4", "40", "10, 2", "0 of 16"]
    assert re.fullmatch("[012] of 4", rows[0][4])
    assert rows[1][2:] == ["10, 0", "0 of 20", "–"]
    assert "careful people named" in (tmp_path / "table.md").read_text()
    assert "2 crowds each" in capsys.readouterr().out
    # Who cannot be told from the others after two items is counted as missed.
    assert careless.named(careless.Crowd(4, 2, 10, 2), 0, resamples=50) == (0, 2)
    assert careless.count(sizes[1]) == 40
    with pytest.raises(UserError, match="crowds = 0"):
        careless.Config(crowds=0)


def test_arms_are_compared_seed_by_seed(tmp_path, capsys):
    accuracy = {"all": (0.80, 0.90), "consensus": (0.81, 0.93), "careful": (0.82, 0.92)}
    results = [
        {"arm": arm, "seed": seed, "pairs": 10, "accuracy": both[seed]}
        for arm, both in accuracy.items()
        for seed in (0, 1)
    ]
    crowd_report.show(results, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    # Differences −1 and +1: the mean's error is 1, and t of one freedom 12.706.
    assert lines[3].endswith("0.810  0.930 | +0.0 (-12.7 to +12.7) |")
    assert lines[2].endswith("| -2.0 (-2.0 to -2.0) |") and lines[4].endswith("| – |")
    assert crowd_report.points([-0.5]) == "-0.5"


def test_too_many_votes():
    with pytest.raises(UserError, match="votes = 17: expected 1 to 16"):
        crowd.Config(votes=17)


def toy_active(run_dir, **changes) -> active.Config:
    model = dataclasses.replace(active.Config.model, **SIZE)
    sizes: dict[str, Any] = {
        "pool": 40,
        "first": 8,
        "each": 8,
        "rounds": 2,
        "eval_pairs": 16,
    }
    config = active.Config(
        run_dir, (0,), members=2, updates=3, batch_size=4, model=model, **sizes
    )
    return dataclasses.replace(config, **changes)


def test_active_choice_s_script(small, tmp_path, capsys):
    results = active.main(toy_active(tmp_path))
    assert [r["choice"] for r in results] == ["random", "active"]
    assert all(r["labels"] == [8, 16, 24] for r in results)
    # Both begin with the same labels.
    assert "of the labels are enough" in capsys.readouterr().out
    assert (tmp_path / "active.png").stat().st_size > 1000
    saved = json.loads((tmp_path / "active0.json").read_text())
    assert saved == results[1]


def test_the_pool_is_repetitive_and_the_held_out_pairs_are_not(tmp_path):
    make = lambda split, common: [
        label_pool.make_pair(random.Random(n), split, common=common) for n in range(9)
    ]
    pairs, plain = make("train", True), make("test", False)
    rare = POLARITY.keys() - {word for words in label_pool.COMMON for word in words}
    assert not any(set(p.chosen.split()) & rare for p in pairs)
    assert any(set(p.chosen.split()) & rare for p in plain)
    assert {p.prompt for p in pairs} & {p.prompt for p in plain} == set()
    toy, sizes = toy_active(tmp_path), {"pool": 40, "held_out": 30, "repeated": 0.9}
    pool, held_out, model = label_pool.make_pools(toy.model, **sizes, seed=0)
    assert pool.labels.shape == (40,) and 5 < pool.labels.sum() < 35
    assert held_out.labels.shape == (30,) and model.vocab_size > 100


def test_labels_that_are_needed():
    assert needed([40, 80, 120], [0.6, 0.8, 0.9], 0.85) == pytest.approx(100)
    assert needed([40, 80], [0.6, 0.8], 0.5) == 40
    assert needed([40, 80], [0.6, 0.8], 0.9) == float("inf")


def test_more_labels_than_pairs():
    with pytest.raises(UserError, match="= 480: expected at most pool = 300"):
        active.Config(pool=300)
    with pytest.raises(UserError, match="repeated = 2"):
        active.Config(repeated=2)
