"""A population of tiny members: what it writes, and what it refuses."""

import dataclasses
import json
import sys

import pytest

from experiments import cli, sweep
from experiments.population import Config
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import POLICY_PRESETS, PolicyConfig
from rlhf_jax.tracking import read_metrics

GRPO = POLICY_PRESETS["grpo"](SamplingConfig(3, completions=2))
TINY = Config(
    seeds=2,
    iterations=3,
    episodes=4,
    prompt_length=2,
    algorithm=PolicyConfig(SamplingConfig(3), missing_stop="keep", epochs=1),
    model=TransformerConfig(
        vocab_size=16,
        d_model=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        d_head=8,
        d_ff=8,
        max_length=8,
    ),
)


def test_ppo_with_two_rates_beside_single_runs(tmp_path, capsys):
    config = dataclasses.replace(
        TINY, run_dir=tmp_path / "run", compare=True, learning_rates=(1e-3, 1e-2)
    )
    summary = sweep.main(config)
    rows = {
        (seed, rate): read_metrics(
            tmp_path / f"run/seed{seed}_rate{rate}" / "metrics.jsonl"
        )
        for seed in (0, 1)
        for rate in (0.001, 0.01)
    }
    assert all(len(found) == 3 for found in rows.values())
    score = lambda seed, rate, step: rows[seed, rate][step]["objective/score"]
    assert score(0, 0.001, 0) == score(0, 0.01, 0)  # same policy, prompts and draws
    kl = [rows[0, rate][2]["objective/kl"] for rate in (0.001, 0.01)]
    assert kl[0] != kl[1]
    mean = sum(score(seed, 0.01, 2) for seed in (0, 1)) / 2
    assert summary["objective/score/0.01"] == pytest.approx(mean)
    assert summary["difference"] < 1e-4
    assert (tmp_path / "run/sweep.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
    shown = capsys.readouterr().out
    assert f"{summary['ratio']:.2f}" in shown and "one after another" in shown


def test_grpo(tmp_path):
    config = dataclasses.replace(TINY, run_dir=tmp_path / "run", algorithm=GRPO)
    summary = sweep.main(config)
    assert 0 <= summary["objective/score/0.01"] <= 1
    assert "ratio" not in summary
    [first, *_] = read_metrics(tmp_path / "run/seed0_rate0.01/metrics.jsonl")
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)  # it is the reference


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": 0}, "seeds = 0: expected 1 or more"),
        ({"iterations": 1}, "iterations = 1: expected 2 or more"),
        ({"learning_rates": ()}, "learning_rates"),
        ({"learning_rates": (1e-3, 1e-3)}, "learning_rates = 0.001 0.001"),
        ({"episodes": 3, "algorithm": GRPO}, "episodes = 3: expected a multiple of"),
        ({"prompt_length": 6}, "prompt_length = 6"),
    ],
)
def test_options_that_cannot_be(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TINY, **change).check()


def test_a_bad_option_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "--seeds", "0"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(sweep.main, {"default": Config()}, description="")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: seeds = 0: expected 1 or more\n"
