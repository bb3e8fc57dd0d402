"""Rewards of single users as scripts, at toy size: training, one user's, new users."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import export, personalize, reward_model, tastes, user_reward
from experiments.calibrating import CALIBRATION
from experiments.inputs import DataConfig
from experiments.judgements import PAIRS
from experiments.networks import load_reward
from experiments.reading import read_data
from experiments.runs import LoraOptions
from experiments.users import UserOptions, load_users, numbered, pair_leads
from rlhf_jax.data import Row, preferences, read_rows, write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json
from rlhf_jax.stages import FLOAT32, Stage, load_policy, load_stage
from rlhf_jax.tracking import read_metrics

TINY = dataclasses.replace(
    personalize.Config.model, d_model=8, n_heads=1, n_kv_heads=1, d_head=8, d_ff=8
)


def toy_rows(users: list[int], each: int = 12) -> list[dict[str, Any]]:
    rng = random.Random(0)
    known = zip(users, tastes.make_users(len(users), rng), strict=False)
    options: Any = {"split": "train", "labels": each, "temperature": 0.5, "rng": rng}
    return tastes.judged_rows(known, **options)


def toy_config(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    folder.mkdir(exist_ok=True)
    write_rows(rows, folder / "rows.jsonl")
    config = reward_model.Config(
        folder / "run",
        DataConfig(str(folder / "rows.jsonl"), eval_fraction=0.2),
        kind="personal",
        users=UserOptions(features=2),
        model=TINY,
        batch_size=8,
        epochs=1,
        devices=1,
        log_every=1,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A reward model of users 7, 900000 and 3."""
    config = toy_config(
        tmp_path_factory.mktemp("personal"), toy_rows([7, 900_000, 3]), normalize=False
    )
    reward_model.main(config)
    return config.run_dir


def test_users_have_rows_of_their_own(trained):
    users = load_users(trained, option="--reward")
    assert users.annotators == [3, 7, 900_000]  # whatever their numbers are
    assert users.weights.shape == (3, 2) and users.stage.num_outputs == 3
    last = read_metrics(trained / "metrics.jsonl")[-1]
    assert 0 <= last["reward/eval_accuracy"] <= 1
    found = load_json(trained / CALIBRATION)
    assert found["accuracy"] == pytest.approx(last["reward/eval_accuracy"])


def test_annotators_become_rows_of_the_parameters():
    @dataclasses.dataclass
    class Batch:
        annotator: np.ndarray

    batch = Batch(np.array([[9, 3, -1], [4, 10, 2]]))
    found = numbered(np.array([3, 9]), lambda: batch)()
    assert found.annotator.tolist() == [[1, 0, -1], [-1, -1, -1]]
    assert found.annotator.dtype == np.int32


def test_one_user_s_model_is_a_reward_model(trained, tmp_path):
    labels = trained.parent / "rows.jsonl"
    judged = preferences(read_rows(labels))[:5]
    users = load_users(trained, option="--reward")
    features = pair_leads(users.stage, judged)
    found = {}
    for name, asked in {
        "known": {"annotator": 7},
        "new": {"labels": str(tmp_path / "mine.jsonl")},
        "pooled": {},
    }.items():
        write_rows(toy_rows([12]), tmp_path / "mine.jsonl")
        config = user_reward.Config(tmp_path / name, trained, **asked)
        weights = user_reward.main(config)
        ours = load_stage(tmp_path / name, "reward", option="--reward")
        assert ours.num_outputs == 1
        expected = features[:, 0] + features[:, 1:] @ weights
        leads = pair_leads(ours, judged)[:, 0]
        np.testing.assert_allclose(leads, expected, rtol=1e-4, atol=1e-5)
        found[name] = weights
    assert found["known"].tolist() == users.weights[1].tolist()
    assert found["pooled"].tolist() == [0, 0]
    before = jnp.mean(users.weights, axis=0)
    assert np.abs(found["new"] - before).max() > 1e-3  # 12 labels say something
    saved = json.loads((tmp_path / "new/weights.json").read_text())
    assert saved == {"weights": found["new"].tolist(), "labels": 12}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"annotator": 8}, "--annotator 8: not one of the 3 users .* [(]3, 7, 900000"),
        ({"labels": "two.jsonl"}, "two.jsonl: pairs of 2 annotators [(]1, 2, …[)]"),
    ],
)
def test_whose_reward_is_asked_for(trained, tmp_path, monkeypatch, asked, message):
    monkeypatch.chdir(tmp_path)
    write_rows(toy_rows([1, 2], each=1), Path("two.jsonl"))
    with pytest.raises(UserError, match=message):
        user_reward.main(user_reward.Config(tmp_path / "run", trained, **asked))


def test_a_user_cannot_be_known_and_new():
    with pytest.raises(UserError, match="leave one out"):
        user_reward.Config(annotator=1, labels="mine.jsonl")


def test_the_rewards_of_many_are_not_taken_for_one(trained, tmp_path):
    with pytest.raises(UserError, match="rewards of many users, expected a reward"):
        load_stage(trained, "reward", option="--reward")
    with pytest.raises(UserError, match="export one user's"):
        export.main(export.Config(trained, out=tmp_path / "out"))
    with pytest.raises(UserError, match=r"no users.json, expected the run directory"):
        load_users(tmp_path, option="--reward")


def test_pairs_that_do_not_say_who_judged(tmp_path):
    rows = toy_rows([1, 2])
    known = toy_config(tmp_path, rows)
    write_rows(rows[:1], tmp_path / "held_out.jsonl")
    data = dataclasses.replace(known.data, eval_path=str(tmp_path / "held_out.jsonl"))
    del rows[4]["annotator"]
    config = toy_config(tmp_path, rows, data=data)
    with pytest.raises(UserError, match=r"rows.jsonl:5: no annotator, expected an int"):
        reward_model.main(config)


def test_one_user_alone(tmp_path):
    with pytest.raises(UserError, match="all pairs are of annotator 4: expected at"):
        reward_model.main(toy_config(tmp_path, toy_rows([4])))


def test_options_of_users():
    with pytest.raises(UserError, match="users.features = 0: expected 1 or more"):
        UserOptions(features=0)
    with pytest.raises(UserError, match="users.prior_std = 0: expected a positive"):
        UserOptions(prior_std=0)


def test_qualities_by_hand():
    # 0.6 and 0.5: the mean of good and liked; eight words; one clause of two.
    found = tastes.qualities(" the plot was good . i liked the cast .")
    assert found.tolist() == [0.55, 8, 0.5]


def test_who_is_in_the_minority():
    # Tastes are 1 · warm ± long ± first person.
    split = lambda *lead: tastes.Pair("", "", "", np.array(lead)).split()
    assert [split(3, 1, 1), split(-3, 1, 1)] == [0, 0]
    assert [split(0.5, 2, 1), split(0.5, 1, 2)] == [2, 2]
    assert [split(1.5, 2, 1), split(-1.5, 2, 1)] == [1, 1]


def test_two_reviews_of_a_pair_are_not_the_same(monkeypatch):
    reviews = iter([" i liked it .", " i liked it .", " i hated it ."])
    monkeypatch.setattr(tastes, "make_review", lambda rng: next(reviews))
    pair = tastes.make_pair(random.Random(0), "test")
    assert (pair.first, pair.second) == (" i liked it .", " i hated it .")
    assert pair.lead[0] * tastes.SCALE[0] == pytest.approx(0.5 + 0.9)


def test_users_say_what_they_like():
    rng = random.Random(0)
    taste, pair = np.array([1.0, -1.0, 0.0]), tastes.make_pair(rng, "test")
    pair = pair._replace(lead=np.array([0.0, -0.5, 3.0]))  # shorter by half
    yes = [tastes.says(taste, pair, temperature=0.5, rng=rng) for _ in range(4_000)]
    assert np.mean(yes) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)
    rows = tastes.judged_rows(
        [(3, taste)], split="test", labels=2, temperature=1e-6, rng=rng
    )
    for row, read in zip(rows, preferences(map(as_read, rows)), strict=True):
        better, worse = map(tastes.qualities, (row["chosen"], row["rejected"]))
        assert taste @ ((better - worse) / tastes.SCALE) > 0
        assert read.annotator == 3


def as_read(values: dict[str, Any]) -> Any:
    return Row(values, "x", 1)


def test_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(personalize, "keep_compiled", lambda path: None)
    config = personalize.Config(
        tmp_path,
        (0,),
        users=2,
        labels=10,
        new_users=1,
        few=(0, 3),
        eval_pairs=40,
        options=UserOptions(features=2),
        epochs=1,
        batch_size=32,
        model=TINY,
    )
    [result] = personalize.main(config)
    assert sum(result["pairs"]) == 40
    assert list(result["accuracy"]) == ["pooled", "0", "3", "known"]
    assert all(0 <= x <= 1 for found in result["accuracy"].values() for x in found)
    assert result["groups"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "new users, 3 labels each" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "personal.png").stat().st_size > 1000
    rows = preferences(read_rows(tmp_path / "seed0/new.jsonl"))
    assert [pair.annotator for pair in rows] == [8 + n // 3 for n in range(12)]
    monkeypatch.setattr(personalize, "train", None)  # it is not called again
    assert personalize.main(config) == [result]


def test_adapters_on_a_policy_in_packed_rows(toys, tmp_path):
    """Of rankings, which say who judged; a policy script takes what comes of it."""
    config = toys.reward(
        tmp_path / "many",
        kind="personal",
        lora=LoraOptions(rank=2),
        pack_length=128,
        batch_size=4,
    )
    reward_model.main(config)
    users = load_users(tmp_path / "many", option="--reward")
    read = read_data(config.data, PAIRS, run_dir=tmp_path, seed=0)
    rankings = read.held_out[:4]
    asked = user_reward.Config(tmp_path / "one", tmp_path / "many", users.annotators[0])
    weights = user_reward.main(asked)
    policy = load_policy(toys.root / "sft", FLOAT32)
    ours = load_reward(str(tmp_path / "one"), "score", policy, FLOAT32)
    assert isinstance(ours, Stage)
    features = pair_leads(users.stage, rankings)
    np.testing.assert_allclose(
        pair_leads(ours, rankings)[:, 0],
        features[:, 0] + features[:, 1:] @ weights,
        rtol=1e-4,
        atol=1e-5,
    )
    # The adapters are in it: the policy's own trunk gives something else.
    plain = dataclasses.replace(
        ours, params=ours.params | {"trunk": policy.params["trunk"]}
    )
    leads = pair_leads(plain, rankings)[:, 0]
    assert np.abs(leads - pair_leads(ours, rankings)[:, 0]).max() > 1e-4
