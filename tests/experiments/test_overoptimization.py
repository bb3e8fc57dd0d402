"""Over-optimisation at toy size: the curves are those of the runs, and it goes on."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import overoptimization, overoptimization_report, readers, sft
from experiments.overoptimization_report import read, trained
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
        epochs=(1,),
        coefs=(1.0, 0.01),
        episodes=4 * 16,
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
    config = dataclasses.replace(run[0], preferences=(32, 64), epochs=(1, 1))
    monkeypatch.setattr(readers, "reader_reward", letters)
    overoptimization.write_preferences(config, config.policy, tmp_path, seed=0)
    paths = [tmp_path / f"train_{n}.jsonl" for n in config.preferences]
    small, large = ([row.values for row in read_rows(path)] for path in paths)
    assert small == large[:32] and len(large) == 64
    letters_of = lambda row: [len(set(row[side])) for side in ("chosen", "rejected")]
    untied = [(a, b) for a, b in map(letters_of, large) if a != b]
    assert len(untied) > 32
    for chosen, rejected in untied:  # a letter more is twelve temperatures more
        assert chosen > rejected


def test_curves_are_means_over_seeds(run):
    config, found = run
    cells = [config.run_dir / f"seed{seed}/64" for seed in config.seeds]
    rl, drawn = read(cells, 64, config.coefs)
    best = [json.loads((c / "best_of_n/curve.json").read_text()) for c in cells]
    gained = np.mean([x["gold"][-1] - x["gold"][0] for x in best])
    np.testing.assert_allclose(drawn.gold[-1], gained)
    far = []  # the last quarter of four iterations is one, here of the longest leash
    for cell, of in zip(cells, best, strict=True):
        row = read_metrics(cell / trained(0.01) / "metrics.jsonl")[-1]
        far.append([row["objective/kl"], row["objective/gold"] - of["gold"][0]])
    kl, gold = np.mean(far, axis=0)
    [at] = np.flatnonzero(np.isclose(rl.kl, kl))
    np.testing.assert_allclose(rl.gold[at], gold)
    assert len(rl.kl) == 3 and (np.diff(rl.kl) > 0).all()
    assert rl.kl[0] == rl.gold[0] == drawn.kl[0] == drawn.gold[0] == 0.0
    assert (config.run_dir / "overoptimization.png").stat().st_size > 10_000
    assert json.loads((config.run_dir / "summary.json").read_text()) == found


def test_a_policy_that_stays_where_it_was_has_no_negative_kl(run, monkeypatch):
    """A mean of log-ratios may be below 0, and has no root."""
    ends = {trained(1.0): [-0.01, 0.1, 0.1], trained(0.01): [4.0, 2.0, 2.0]}
    near = lambda run_dir: np.array(ends[run_dir.name])
    monkeypatch.setattr(overoptimization_report, "ppo", near)
    cells = [run[0].run_dir / "seed0/64"]
    rl, _ = read(cells, 64, run[0].coefs)
    assert rl.kl.tolist() == [0.0, 0.0, 4.0]
    assert np.isfinite(rl.gold).all()


@pytest.mark.parametrize("given", [(), (64, 32), (16, 64), (32, 32)])
def test_preferences_ascend(given):
    with pytest.raises(UserError, match="expected ascending numbers from 32 on"):
        overoptimization.Config(preferences=given, epochs=(1,) * len(given))


def test_epochs_of_each_reward_model():
    with pytest.raises(
        UserError, match=r"epochs = \(3,\): expected one number for each"
    ):
        overoptimization.Config(preferences=(32, 64), epochs=(3,))


def test_the_reader():
    said = {
        "": 0.0,
        "the plot was good . the cast was fun . i loved it .": (0.6 + 0.5) / 3,
        "the cast was fun . i loved the story .": (0.5 + 0.9) / 3,
        "the plot was good . the plot was fun .": 0.6 / 3,
        "the plot was good good .": 0.0,
        "it is set in rome . it is set in rome .": 0.0,
        "a good . b . c . d .": 0.0,
        "the plot was good . " * 4: 0.6 / 4,
    }
    found = reader_reward(prompts=[""] * len(said), completions=list(said))
    np.testing.assert_allclose(found, list(said.values()), atol=1e-6)
