"""Scripts that choose among several completions: preferences online, best of n."""

import dataclasses
import json
import math

import numpy as np
import pytest
from stage_toys import check_tokens

from experiments import best_of_n, expert_iteration, export, online_preference, sft
from experiments.best_of_k import demonstrations
from experiments.inputs import DataConfig
from experiments.runs import LoraOptions
from rlhf_jax.data import Conversation
from rlhf_jax.data.records import Prompt
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_stage
from rlhf_jax.steps import ONLINE_PRESETS
from rlhf_jax.tracking import read_metrics

GOLD = "rlhf_jax.data.tiny_reviews:gold_reward"


@pytest.mark.parametrize("preset", ONLINE_PRESETS)
def test_a_policy_learns_from_pairs_of_its_own(toys, tmp_path, preset):
    summary = online_preference.main(toys.online(tmp_path / "run", preset))
    assert summary["before/kl"] == pytest.approx(0, abs=1e-4) != summary["after/kl"]
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["optim/grad_norm"] > 0
    if preset == "nash_md":
        assert 0 < rows[0]["pairs/win"] < 1
        assert "preference/loss" not in rows[0] and "nash_md/loss" in rows[0]
    else:  # before the first update the policy is its own reference
        assert rows[0]["preference/loss"] == pytest.approx(math.log(2))
        assert rows[1]["preference/margin"] != 0 == rows[0]["preference/margin"]
    assert ("xpo/bonus" in rows[0]) == (preset == "xpo")
    check_tokens(tmp_path / "run", summary)  # whoever draws the others of training
    export.main(export.Config(tmp_path / "run", tmp_path / "out"))
    assert "on its own completions" in (tmp_path / "out/README.md").read_text()


def test_a_mixture_with_adapters_on_two_devices(toys, tmp_path):
    """Gold scores, too, are of what the policy itself has drawn."""
    config = toys.online(
        tmp_path, "nash_md", reward=GOLD, lora=LoraOptions(rank=2), devices=2
    )
    check_tokens(tmp_path, online_preference.main(config))
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        assert row["objective/score"] == pytest.approx(row["objective/gold"])
    assert load_stage(tmp_path, "policy", option="--policy").adapters is not None


def test_expert_iteration_imitates_the_best(toys, tmp_path):
    """KL is that of temperature 1, whatever the samples are drawn at."""
    config = toys.expert(tmp_path / "run", devices=2)
    cold = dataclasses.replace(config.expert.sampling, temperature=0.5)
    expert = dataclasses.replace(config.expert, rows=2, sampling=cold)
    summary = expert_iteration.main(dataclasses.replace(config, expert=expert))
    assert summary["before/kl"] == pytest.approx(0, abs=1e-4) != summary["after/kl"]
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["best/score"] > row["objective/score"]
        assert 0 < row["sft/loss"] < 10 and "objective/gold" in row
    check_tokens(tmp_path / "run", summary)
    export.main(export.Config(tmp_path / "run", tmp_path / "out"))
    assert "expert iteration" in (tmp_path / "out/README.md").read_text()


def test_a_round_s_updates_are_whole(toys, tmp_path):
    config = toys.expert(tmp_path)
    expert = dataclasses.replace(config.expert, rows=3)
    with pytest.raises(UserError, match="rows = 3.*divisor of the 2 completions"):
        dataclasses.replace(config, expert=expert)


@pytest.mark.parametrize("script", ["online", "expert"])
def test_packing_is_refused(toys, tmp_path, script):
    with pytest.raises(UserError, match="pack_length = 128: .* leave it out"):
        getattr(toys, script)(tmp_path, pack_length=128)


def test_every_row_is_learned_once_an_epoch():
    expert = expert_iteration.ExpertConfig(epochs=3, rows=4)
    updates = list(expert_iteration.minibatches(np.random.default_rng(0), 12, expert))
    assert [len(rows) for rows in updates] == 9 * [4]
    for epoch in range(3):
        taken = np.concatenate(updates[3 * epoch : 3 * epoch + 3])
        assert sorted(taken) == list(range(12))


def test_best_of_n_is_data_for_fine_tuning(toys, tmp_path):
    # Completions end at an e: of their own they hardly ever do.
    sampling = SamplingConfig(max_new_tokens=60, completions=4)
    config = toys.best_of_n(tmp_path / "best", sampling=sampling, stop_text="e")
    ends = best_of_n.main(config)
    best = load_json(tmp_path / "best/curve.json")
    assert best["k"] == [1, 2, 3, 4] and best["kl"][0] == 0
    assert best["kl"][3] == pytest.approx(math.log(4) - 0.75)
    assert sorted(best["score"]) == best["score"]
    assert ends["score/n"] == best["score"][3]
    assert len(best["gold"]) == 4 and ends["gold/1"] == best["gold"][0]
    assert (tmp_path / "best/curve.png").stat().st_size > 1000
    lines = (tmp_path / "best/best.jsonl").read_text().splitlines()
    assert len(lines) == ends["kept"] >= 4
    data = DataConfig(str(tmp_path / "best/best.jsonl"), eval_fraction=0.4)
    policy = toys.root / "sft"
    config = toys.sft(tmp_path / "sft", data=data, policy=policy, batch_size=2)
    assert sft.main(config)["sft/eval_loss"] > 0


def test_batches_and_devices_change_no_completion(toys, tmp_path):
    lines = []
    for name, changes in {"a": {}, "b": {"batch_size": 2, "devices": 2}}.items():
        config = toys.best_of_n(tmp_path / name, gold=None, stop_text="e", **changes)
        best_of_n.main(config)
        rows = (tmp_path / name / "best.jsonl").read_text().splitlines()
        lines.append([json.loads(row) for row in rows])
    texts = [[(row["prompt"], row["completion"]) for row in part] for part in lines]
    assert texts[0] == texts[1] and "gold" not in lines[0][0]


def test_the_best_that_has_ended_is_a_demonstration():
    texts = [
        Prompt("a"),
        Prompt("b"),
        Conversation(({"role": "user", "content": "c"},)),
    ]
    completions = ["cut", "good", "bad", "  ", "cut", "cut", "yes", "no", "cut"]
    scores = {"score": np.arange(9.0)[::-1]}
    ended = np.array([text != "cut" for text in completions])
    rows = demonstrations(texts, completions, scores, ended)
    assert rows == [
        {"prompt": "a", "completion": "good", "score": 7.0},
        {
            "prompt": [{"role": "user", "content": "c"}],
            "completion": [{"role": "assistant", "content": "yes"}],
            "score": 2.0,
        },
    ]
