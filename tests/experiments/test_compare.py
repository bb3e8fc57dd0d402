"""The comparison: its rows are whole, it goes on where it was, its table is right."""

import dataclasses
import functools
import json
from typing import get_args

import pytest

from experiments import compare, quickstart, reward_model, sft
from experiments.compared import ROWS, Start
from experiments.comparison import TITLES, points, show
from rlhf_jax.errors import UserError
from rlhf_jax.ops.preference_options import PreferenceKind, ReferenceFreeKind
from rlhf_jax.ops.unpaired_loss import UnpairedKind
from rlhf_jax.steps import ONLINE_PRESETS, POLICY_PRESETS


def test_every_algorithm_has_a_row(tmp_path):
    assert {*POLICY_PRESETS, *ONLINE_PRESETS} <= set(ROWS)
    start = Start(tmp_path, seed=3)
    configs = {name: row.config(start, tmp_path / name) for name, row in ROWS.items()}
    kinds = [c.preference.kind for c in configs.values() if hasattr(c, "preference")]
    for kind in (PreferenceKind, ReferenceFreeKind, UnpairedKind):
        assert set(get_args(kind)) <= set(kinds)
    for name, config in configs.items():
        assert config.run_dir == tmp_path / name and config.seed == 3
        assert 4_000 < ROWS[name].samples(config) <= 10_240, name
        assert ROWS[name].family in TITLES
    small = ROWS["dpo"].config(Start(tmp_path, seed=3, scale=0.05), tmp_path)
    assert ROWS["dpo"].samples(small) == 4 * 64


@pytest.fixture
def toy_stages(toys, monkeypatch):
    """Stages of two updates, with a tokenizer whose prompts are as long as ever."""
    toy = toys.sft(toys.root)
    model = dataclasses.replace(toy.model, vocab_size=512, max_length=64)

    def stages(config):
        root, data = config.run_dir, toys.data("reviews", 200)
        given = {"data": data, "model": model, "batch_size": 64, "save_every": 9}
        yield "sft", functools.partial(sft.main, toys.sft(root / "sft", **given))
        judged = toys.reward(root / "reward", policy=root / "sft")
        yield "reward", functools.partial(reward_model.main, judged)

    monkeypatch.setattr(quickstart, "stages", stages)
    monkeypatch.setattr(compare, "keep_compiled", lambda path: None)  # for all tests
    there = toys.root / "data"
    monkeypatch.setattr(quickstart, "write_data", lambda path: path.symlink_to(there))


@pytest.mark.slow
def test_it_trains_measures_and_goes_on(toy_stages, tmp_path, monkeypatch, capsys):
    """Distillation fails until its teacher is there; all else is trained once."""
    run = tmp_path / "run"
    names = ("grpo", "distill", "dpo")
    config = compare.Config(run, (0,), names, scale=0.02, devices=1)
    with pytest.raises(SystemExit, match=r"distill \(seed 0\)"):
        compare.main(config)
    assert "--teacher" in (run / "table.md").read_text()
    saved = {name: (run / f"seed0/{name}.json").read_bytes() for name in names}
    grpo = json.loads(saved["grpo"])
    assert grpo["samples"] == 128 and grpo["seconds"] > 0 and grpo["kl"] != 0
    began = json.loads((run / "seed0/start.json").read_text())
    assert began["kl"] == pytest.approx(0, abs=1e-4)

    monkeypatch.setattr(quickstart, "write_data", lambda path: None)
    found = {"gold": 1.0, "kl": 0.5}
    taught = ROWS["distill"]._replace(main=lambda c: found, measured=lambda s: s)
    monkeypatch.setitem(compare.ROWS, "distill", taught)
    results = compare.main(config)
    assert [r["algorithm"] for r in results] == ["start", *names]
    for name in ("grpo", "dpo"):
        assert (run / f"seed0/{name}.json").read_bytes() == saved[name]
    assert results[2]["gold"] == 1 and results[3]["kl"] != 0
    assert (run / "compare.png").stat().st_size > 1000
    assert "gained less than 0.4" in capsys.readouterr().out
    with pytest.raises(UserError, match="scale"):
        compare.main(dataclasses.replace(config, scale=0.5))


def test_the_table(tmp_path, capsys):
    """Means over those seeds that are there; a gain is over the start of its seed."""

    def result(name, seed, gold):
        spent = {"samples": 64, "seconds": 2.0}
        found = {"gold": gold, "kl": 1.5, "distinct": 1.0, "ended": 0.5}
        return {"algorithm": name, "seed": seed} | found | spent

    results = [
        result("start", 0, 0.0),
        result("start", 1, 0.2),
        result("ppo", 0, 0.5),
        result("ppo", 1, 0.9),
        result("ipo", 1, 0.5),
        {"algorithm": "ipo", "seed": 0, "error": "ValueError: no"},
    ]
    ppo = points(results)[1]
    assert ppo.gain == pytest.approx(0.6) and ppo.seeds == 2
    show(results, tmp_path / "table.md")
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[3] == "| ppo | 0.70 ± 0.28 | +0.60 | 1.5 | 1.00 | 0.50 | 64 | 2 | 2 |"
    assert rows[4] == "| ipo | 0.50 | +0.30 | 1.5 | 1.00 | 0.50 | 64 | 2 | 1 |"
    assert rows[5] == "| ipo | ValueError: no | – | – | – | – | – | – | seed 0 |"
    shown = capsys.readouterr().out
    assert "ipo: gained less than 0.4" in shown and "ppo: gained" not in shown


def test_an_algorithm_that_is_not_there():
    with pytest.raises(UserError, match="ppo2: expected some of ppo, "):
        compare.Config(algorithms=("ppo2",))
