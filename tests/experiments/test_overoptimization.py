"""Over-optimisation at toy size: the curves are those of the runs, and it goes on."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import overoptimization, readers, sft
from experiments.overoptimization_report import STEP, in_steps, read
from experiments.readers import reader_reward
from rlhf_jax.data import read_rows
from rlhf_jax.errors import UserError
from rlhf_jax.tracking import read_metrics


def letters(*, prompts, completions):
    """Likes different letters: all that a toy says is equally bad to the reader."""
    return [len(set(text)) for text in completions]


@pytest.fixture(scope="module")
def run(toys, tmp_path_factory):
    """A run of two reward models; a policy whose prompts are as long as ever."""
    root = tmp_path_factory.mktemp("overoptimization")
    toy = toys.sft(root / "sft", data=toys.data("reviews", 200), batch_size=64)
    model = dataclasses.replace(toy.model, vocab_size=512, max_length=64)
    sft.main(dataclasses.replace(toy, model=model))
    config = overoptimization.Config(
        root / "run",
        policy=root / "sft",
        preferences=(64,),
        epochs=1,
        episodes=15 * 16,
        learning_rate=1e-2,
        batch_size=16,
        prompts=4,
        completions=8,
        devices=1,
        seeds=(0, 1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimization, "tiny_reviews", lambda _, x: toys.data(x, 40))
        patch.setattr(readers, "reader_reward", letters)
        patch.setattr(overoptimization, "GOLD", f"{__name__}:letters")
        found = overoptimization.main(config)
        again = overoptimization.main(dataclasses.replace(config, resume=True))
    assert again == found  # nothing was made twice, or came out otherwise
    return config, found


def test_preferences_are_of_what_is_liked_better(run, monkeypatch, tmp_path):
    config = dataclasses.replace(run[0], preferences=(32, 64))
    monkeypatch.setattr(readers, "reader_reward", letters)
    overoptimization.write_preferences(config, config.policy, tmp_path, seed=0)
    paths = [tmp_path / f"train_{n}.jsonl" for n in config.preferences]
    small, large = ([row.values for row in read_rows(path)] for path in paths)
    assert small == large[:32] and len(large) == 64
    for row in large:
        assert len(set(row["chosen"])) > len(set(row["rejected"]))


def test_curves_are_means_over_seeds(run):
    config, found = run
    cells = [config.run_dir / f"seed{seed}/64" for seed in config.seeds]
    trained, drawn = read(cells, 64)
    best = [json.loads((c / "best_of_n/curve.json").read_text()) for c in cells]
    gained = np.mean([x["gold"][-1] - x["gold"][0] for x in best])
    np.testing.assert_allclose(drawn.gold[-1], gained)
    near = []  # of each seed, iterations within the first step
    for cell, of in zip(cells, best, strict=True):
        rows = read_metrics(cell / "ppo/metrics.jsonl")
        golds = [r["objective/gold"] for r in rows if r["objective/kl"] < STEP**2]
        near.append(np.mean(golds) - of["gold"][0])
    np.testing.assert_allclose(trained.gold[0], np.mean(near))
    assert (np.diff(trained.kl) > 0).all() and drawn.kl[0] == drawn.gold[0] == 0.0
    assert (config.run_dir / "overoptimization.png").stat().st_size > 10_000
    assert json.loads((config.run_dir / "summary.json").read_text()) == found


def test_steps_are_as_far_as_all_runs_came():
    short = np.array([[0.0, 1.0, 1.0], [0.01, 3.0, 1.0], [1.0, 5.0, 1.0]])
    long = np.array([[0.0, 4.0, 0.0], [1.0, 7.0, 3.0], [4.0, 9.0, 9.0]])
    found = in_steps([short, long])
    np.testing.assert_allclose(found, [[0.0025, 1.0], [3.0, 6.0], [0.5, 2.0]])


@pytest.mark.parametrize("given", [(), (64, 32), (16, 64), (32, 32)])
def test_preferences_ascend(given):
    with pytest.raises(UserError, match="expected ascending numbers from 32 on"):
        overoptimization.Config(preferences=given)


def test_the_reader():
    said = {
        "": 0.0,
        "the plot was good . the cast was fun . i loved it .": (0.6 + 0.5 - 0.5) / 3,
        "the cast was fun . i loved the story .": (0.5 + 0.9) / 3,
        "the plot was good . the plot was fun .": (0.6 - 0.5) / 3,
        "the plot was good good .": -0.5 / 3,
        "it is set in rome . it is set in rome .": -0.5 / 3,
        "a good . b . c . d .": -0.5,
        "the plot was good . " * 4: (0.6 - 1.5) / 4,
    }
    found = reader_reward(prompts=[""] * len(said), completions=list(said))
    np.testing.assert_allclose(found, list(said.values()), atol=1e-6)
