"""Scripts that measure: expected reward, win rates, the quality of a reward model."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import expected_reward, reward_quality, win_rate
from experiments.calibrating import CALIBRATION, held_out_differences
from experiments.evaluation import report_accuracy
from experiments.pair_scores import edited
from experiments.win_report import compare, rate
from rlhf_jax.data import (
    Preference,
    Ranking,
    collate_preferences,
    collate_rankings,
)
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.types import Metrics

GOLD = "rlhf_jax.data.tiny_reviews:gold_reward"


def _shared(toys) -> dict:
    return {
        "reward": str(toys.root / "reward"),
        "gold": GOLD,
        "prompt_length": 64,
        "batch_size": 4,
        "devices": 1,
    }


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_expected_reward_of_responses_that_can_be_listed(toys, tmp_path):
    """Of one token there are as many as the vocabulary has: the sum over all is π's."""
    config = expected_reward.Config(
        tmp_path / "run",
        policy=toys.root / "sft",
        data=toys.data("prompts", 6),
        prompts=5,
        sampling=SamplingConfig(max_new_tokens=1, completions=64),
        exact=1e-7,
        **_shared(toys),
    )
    found = expected_reward.main(config)["score"]
    assert found["exact_mass"] == pytest.approx(1, abs=1e-3)
    # Within four standard errors of these queries, whose interval is about two wide.
    fixed = found["queries_fixed"]
    assert abs(found["exact"] - found["value"]) < fixed["high95"] - fixed["low95"]
    rollouts = _lines(tmp_path / "run/rollouts.jsonl")
    assert len(rollouts) == 5 * 64 == found["responses"]
    assert np.mean([r["reward"] for r in rollouts]) == pytest.approx(found["value"])
    for r in rollouts:
        assert r["probability"] == pytest.approx(math.exp(r["logprob"]))
        assert 0 < r["probability"] < 1 and "gold" in r
    queries = _lines(tmp_path / "run/queries.jsonl")
    assert [q["query"] for q in queries] == [r["query"] for r in rollouts[::64]]
    means = [q["reward"]["value"] for q in queries]
    assert np.mean(means) == pytest.approx(found["value"])
    assert (tmp_path / "run/expected_reward.png").stat().st_size > 1000


def test_right_and_wrong_answers_are_pass_at_k():
    found = expected_reward.summarize(np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    passed = {k: x["value"] for k, x in found["pass_at_k"].items()}
    assert passed == pytest.approx({"1": 0.125, "2": 0.25, "4": 0.5})
    assert "pass_at_k" not in expected_reward.summarize(np.array([[1.0, 0.5]]))
    alone = expected_reward.summarize(np.array([[0.5], [0.7]]))
    assert alone["variance_within_queries"] is None
    with pytest.raises(UserError, match="exact = 0.0: expected"):
        expected_reward.Config(exact=0.0)


def test_a_policy_against_itself(toys, tmp_path):
    """Randomness of its own: answers differ, and neither side is better."""
    again = toys.root / "reward" / ".." / "sft"
    config = win_rate.Config(
        tmp_path / "run",
        policies=(toys.root / "sft", again),
        data=toys.data("prompts", 16),
        prompts=12,
        sampling=SamplingConfig(max_new_tokens=8, completions=2),
        **_shared(toys),
    )
    found = win_rate.main(config)
    by_reward, by_gold = found["comparisons"]
    assert by_gold["judged_by"] == GOLD
    [row] = by_reward["against_first"]
    assert row["policy"] == str(again) and row["comparisons"] == 12 * 4
    assert row["win_rate"]["low95"] < 0.5 < row["win_rate"]["high95"]
    low, high = (row["reward_difference"][x] for x in ("low95", "high95"))
    assert low < 0 < high
    rows = _lines(tmp_path / "run/answers.jsonl")
    assert len(rows) == 24 and rows[0]["prompt"] == rows[1]["prompt"]
    assert rows[0]["completions"] != rows[1]["completions"]
    assert (tmp_path / "run/win_rate.png").stat().st_size > 1000

    # A judge that is asked in both orders; one that reads letters for answers.
    asked = tmp_path / "asked.toml"
    asked.write_text(
        '[[principles]]\nname = "q"\ncritique = "c"\nrevision = "r"\n'
        'preference = "better?"\n[templates]\nanswers = ["a", "b"]\n'
        'preference = "{request} {first} {second}"\n'
    )
    judge = {"judge": toys.root / "sft", "constitution": asked, "gold": None}
    config = dataclasses.replace(config, run_dir=tmp_path / "judged", **judge)
    sampling = SamplingConfig(max_new_tokens=4, completions=1)
    config = dataclasses.replace(config, prompts=4, sampling=sampling)
    [found] = win_rate.main(config)["comparisons"]
    assert -0.5 <= found["position_bias"] <= 0.5
    assert found["against_first"][0]["comparisons"] == 4
    assert "reward_difference" not in found["against_first"][0]
    with pytest.raises(UserError, match="expected two or more, each once"):
        win_rate.Config(policies=(again, again))


def test_comparisons_of_several_policies():
    """Policy 1 beats the first, which beats policy 2; policy 1 talks more."""
    rng = np.random.default_rng(0)
    rewards = [level + rng.normal(size=(40, 3)) for level in (0.0, 2.0, -1.0)]
    lengths = [rng.integers(5, 9, size=(40, 3)) + extra for extra in (0, 3, 0)]
    wins = lambda a, b: (rewards[a][:, :, None] > rewards[b][:, None]).reshape(40, -1)
    outcomes = {(a, b): wins(a, b) * 1.0 for a in range(3) for b in range(3) if a != b}
    better, worse = compare(["a", "b", "c"], outcomes, lengths, rewards, rng)
    assert better["win_rate"]["low95"] > 0.5 > worse["win_rate"]["high95"]
    assert better["wins"] == pytest.approx(outcomes[1, 0].mean())
    assert better["ties"] == 0
    assert better["reward_difference"]["value"] == pytest.approx(2, abs=0.5)
    ratings = rate(["a", "b", "c"], outcomes)
    assert [row["policy"] for row in ratings] == ["b", "a", "c"]


def test_two_ways_to_one_calibration(toys, tmp_path):
    """What reward_model writes at its end, and what reward_quality finds in texts."""
    data = dataclasses.replace(
        toys.data("rankings", 4), path="tfds:tiny_reviews/rankings:test[:10]"
    )
    config = reward_quality.Config(
        tmp_path / "run",
        data=dataclasses.replace(data, eval_path=None, eval_fraction=0.2),
        policy=toys.root / "sft",
        prompts=3,
        sampling=SamplingConfig(max_new_tokens=8, completions=3),
        **_shared(toys),
    )
    found = reward_quality.main(config)
    saved = load_json(tmp_path / "run" / CALIBRATION)
    trained = load_json(toys.root / "reward" / CALIBRATION)
    assert saved.keys() == trained.keys() and saved["pairs"] == trained["pairs"] == 60
    for name in ("accuracy", "ece", "brier"):
        assert saved[name] == pytest.approx(trained[name], abs=1e-4), name
    accuracy = load_json(toys.root / "reward/summary.json")["reward/eval_accuracy"]
    assert trained["accuracy"] == pytest.approx(accuracy)
    assert sum(b["count"] for b in trained["bins"]) == 60
    assert sum(b["count"] for b in found["gold_margins"]) == 60
    assert -1 <= found["length"]["score_spearman"]["value"] <= 1
    assert found["fresh"]["prompts"] == 3
    for name, edit in found["edits"].items():
        fitting = 60 - edit["pairs_too_long"]
        assert edit["texts"] == 2 * fitting > 0 and edit["change"] > 0, name
    assert (tmp_path / "run/quality.png").stat().st_size > 1000
    with pytest.raises(UserError, match="--policy needs --gold"):
        reward_quality.Config(policy=toys.root)


def test_differences_of_held_out_judgements():
    """A score of 10 a column and 1 a completion's first token: pairs and rankings."""
    score_fn: Any = lambda params, batch, *, at: 10.0 * at[..., None] + params
    both = Preference((1,), (7, 8), (9,), weight=0.0), Preference((1,), (7,), (8, 9))
    pairs = collate_preferences(both, length=4, pad_id=0)
    pairs = type(pairs)(**{k: _jax(v) for k, v in vars(pairs).items()})
    apart, there = held_out_differences(1.0, pairs, None, score_fn=score_fn)
    assert apart.tolist() == [10, -10] and there.tolist() == [False, True]
    ranked = Ranking((1,), ((7,), (8, 9), (7, 8, 9)), ranks=(1, 0, 1))
    judged = _jax(collate_rankings([ranked], length=4, pad_id=0))
    apart, there = held_out_differences(1.0, judged, None, score_fn=score_fn)
    assert there[0].tolist() == [[False] * 3, [True, False, True], [False] * 3]
    assert apart[0, 1].tolist() == [10, 0, -10]


def _jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def test_edits_of_messages_are_of_the_answer():
    ask, yes, no = (({"role": "user", "content": text},) for text in ("q", "a", "b"))
    found = edited(Preference(ask, yes, no), str.upper)
    assert [x.chosen[-1]["content"] for x in (found,)] == ["A"]
    assert found.prompt == ask and yes[0]["content"] == "a"


def test_what_few_labels_do_not_tell_is_not_known(tmp_path):
    """Good answers alone are held out: of the others there is no reward."""
    means = {"accuracy": (3.0, 4.0), "chosen": (2.0, 4.0), "rejected": (0.0, 0.0)}
    found = Metrics.of({f"preference/{name}": mean for name, mean in means.items()})
    report_accuracy("Unpaired", tmp_path, found)
    saved = load_json(tmp_path / "summary.json")
    assert saved["preference/eval_rejected"] is None
    assert saved["preference/eval_chosen"] == 0.5 and saved["judgements"] == 4
