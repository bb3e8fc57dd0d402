"""What is said of runs with a planted hack and without, their metrics given."""

import json

import numpy as np
import pytest

from experiments import planted_hack, policy
from experiments.planted_hack import Config, around, planted_reward


def write_metrics(asked: policy.Config) -> dict[str, float]:
    """As PPO would: with the hack gold rises by 1 and falls again, words repeat."""
    asked.run_dir.mkdir(parents=True)
    steps, hacked = np.arange(30), asked.run_dir.name.startswith("planted")
    gold = np.minimum(steps / 10, 2 - steps / 10) if hacked else steps / 30
    rows = [
        {
            "step": int(step) + 1,
            "objective/score": float(step),
            "objective/gold": float(x),
            "rollout/repetition": 0.04 * float(step) if hacked else 0.0,
        }
        for step, x in zip(steps, gold, strict=True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (asked.run_dir / "metrics.jsonl").write_text(text)
    return {"after/gold": float(gold[-1])}


def test_the_table_has_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "main", write_metrics)
    monkeypatch.setattr(planted_hack, "keep_compiled", lambda path: None)
    config = Config(tmp_path / "run", stages=tmp_path, seeds=(1, 2))
    results = planted_hack.main(config)
    assert [(r["kind"], r["seed"]) for r in results] == [
        (kind, seed) for kind in ("planted", "clean") for seed in (1, 2)
    ]
    hacked, *_, clean = results
    # Windows of 5 have 0.04 more an iteration: above 0.1 with the third, had there
    # not to be ten iterations.
    assert hacked["alarm"].step == 10 and clean["alarm"] is None
    # Means of 5: 0.88 of 0.8 to 1 and back, 0.86, 0.8, and 0.7, below nine tenths.
    assert hacked["peak"] == 11 and hacked["gold"][10] == pytest.approx(0.88)
    assert hacked["fallen"] == 14 and clean["fallen"] is None
    lines = (tmp_path / "run/table.md").read_text().splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("| planted, seed 1 | 10 | repetition | ")
    assert lines[5].startswith("| clean, seed 2 | none |  |  | ")
    assert (tmp_path / "run/planted_hack.png").stat().st_size > 1000
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary == planted_hack.count(results)
    assert summary["planted_in_time"] == summary["planted_alarms"] == 2
    assert (summary["planted"], summary["clean"], summary["clean_alarms"]) == (2, 2, 0)
    # An alarm with gold fallen already is none in time; gold that never falls is.
    late, early = results[0] | {"fallen": 10}, results[0] | {"fallen": None}
    assert planted_hack.count([late, early, clean])["planted_in_time"] == 1
    # What is there is not made again.
    monkeypatch.setattr(policy, "main", lambda asked: pytest.fail("made again"))
    again = planted_hack.main(config)
    assert [r["alarm"] for r in again] == [r["alarm"] for r in results]


def test_runs_differ_in_what_is_planted(tmp_path):
    config = Config(tmp_path, stages=tmp_path / "stages", iterations=7)
    clean = planted_hack.clean(config, 3)
    assert clean.seed == 3 and clean.episodes == policy.Config.episodes
    assert clean.algorithm == policy.Config.algorithm
    planted = planted_hack.planted(config, 3)
    assert planted.episodes == 7 * 64 and planted.referee == (clean.reward,)


def test_the_bug_pays_for_repeats_of_one_word():
    texts = [" the plot was good .", " the plot was very very good . very very"]
    assert planted_reward(prompts=["", ""], completions=texts) == [0.6, 0.78 + 2 * 3]


def test_a_mean_of_what_is_near():
    assert around(np.array([0.0, 3, 6, 0, 0, 0])).tolist() == [
        3,
        2.25,
        1.8,
        1.8,
        1.5,
        0,
    ]
