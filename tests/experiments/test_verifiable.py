"""Sums and products at toy size: data, both stages, the table."""

import dataclasses
import json
import shutil

import pytest

from experiments import addition, calculator
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.tracking import read_metrics

TOY = dataclasses.replace(
    addition.MODEL, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, d_head=8, d_ff=16
)


def shrunk(algorithm, **changes):
    sampling = SamplingConfig(completions=2, **changes)
    return dataclasses.replace(algorithm, sampling=sampling)


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_addition_in_two_stages(tmp_path, capsys):
    config = addition.Config(
        tmp_path,
        digits=2,
        problems=16,
        held_out=4,
        model=TOY,
        sft_batch_size=16,
        sft_updates=40,
        sft_loss=5.5,  # less than at the beginning, more than at the end
        algorithm=shrunk(addition.GRPO, max_new_tokens=4),
        iterations=2,
        batch_size=8,
        devices=1,
    )
    results = addition.main(config)
    assert 0 <= results["accuracy after GRPO"] <= 1
    assert load_json(tmp_path / "summary.json") == results
    assert (tmp_path / "grpo" / "report.png").stat().st_size > 1000
    updates = [row["step"] for row in read_metrics(tmp_path / "sft" / "metrics.jsonl")]
    assert updates[-1] in (10, 20, 30)  # it was enough before the end
    assert "accuracy after SFT" in capsys.readouterr().out
    names = ("held_out", "problems", "sums")
    problems = [rows(tmp_path / f"{name}.jsonl") for name in names]
    assert [len(part) for part in problems] == [4, 16, 640]
    asked = [row["prompt"] for part in problems for row in part]
    assert len(set(asked)) == len(asked)
    for row in (row for part in problems for row in part):
        a, b = map(int, row["prompt"].rstrip("=").split("+"))
        assert a + b == int(row["completion"])
    with pytest.raises(UserError, match="the held-out loss is .* after them"):
        stuck = dataclasses.replace(config, run_dir=tmp_path / "b", sft_loss=0.01)
        addition.main(stuck)


def test_there_are_only_so_many_sums(tmp_path):
    config = addition.Config(tmp_path, digits=1, problems=99, held_out=2)
    with pytest.raises(UserError, match="expected 100 at most"):
        addition.main(config)


def test_calculator_in_two_stages(tmp_path, capsys):
    config = calculator.Config(
        tmp_path,
        digits=2,
        demonstrations=64,
        problems=9,
        held_out=4,
        model=dataclasses.replace(TOY, max_length=64),
        algorithm=shrunk(calculator.Config.algorithm, max_new_tokens=12),
        iterations=2,
        batch_size=4,
        save_every=1,
        devices=1,
    )
    results = calculator.main(config)
    assert 0 <= results["accuracy after GRPO"] <= 1
    summary = load_json(tmp_path / "summary.json")
    assert summary == results | {"stopped": "all steps"}
    assert (tmp_path / "report.png").stat().st_size > 1000
    steps = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in steps] == [1, 2]
    assert "the calculator silent" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints" / "2")  # as if it had been stopped before
    again = calculator.main(dataclasses.replace(config, resume=True))
    assert read_metrics(tmp_path / "metrics.jsonl") == steps
    timed = {"seconds of SFT", "seconds of GRPO"}
    assert {k: again[k] for k in again.keys() - timed}.items() <= results.items()
    shown = rows(tmp_path / "demonstrations.jsonl")
    assert sum("[" in row["completion"] for row in shown) == 32
    for row in shown:
        a, b = map(int, row["prompt"].rstrip("=").split("*"))
        product = str(a * b)
        assert len(product) == 4
        assert row["completion"].rpartition(">")[2] == product


def test_only_the_policys_own_words_count():
    """The calculator has the product; a response that does not repeat it is wrong."""
    found = calculator.Conversed(
        rollout=None,  # type: ignore[arg-type]
        prompts=["12*34=", "12*34=", "12*34="],
        answers=[">408", "[12*34]", ">40"],
        called=[True, False, True],
    )
    assert calculator.scores(found).tolist() == [1.0, 0.0, 0.0]
    assert calculator.summary(found) == pytest.approx(
        {"accuracy": 1 / 3, "calls": 2 / 3}
    )
