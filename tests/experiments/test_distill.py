"""`experiments.distill`: nearer to the teacher, on- and off-policy, and resumable."""

import dataclasses
import json

import pytest
from interrupted import killed_at_its_second_save

from experiments import distill, export, sft
from experiments.runs import LoraOptions
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_stage
from rlhf_jax.steps import DistillationConfig
from rlhf_jax.tracking import read_metrics


@pytest.fixture(scope="module", autouse=True)
def teacher(toys):
    toys.teacher()


def test_the_student_comes_nearer(toys, tmp_path):
    config = toys.distill(tmp_path / "run", updates=4)
    summary = distill.main(config)
    assert 0 < summary["after/kl"] < 0.9 * summary["before/kl"]
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["distillation/on_policy"] == 1 for row in rows)
    assert all("objective/gold" in row for row in rows)
    assert rows[-1]["distillation/loss"] < rows[0]["distillation/loss"]
    lines = (tmp_path / "run/samples.jsonl").read_text().splitlines()
    assert len(lines) == 8 and json.loads(lines[0]).keys() == {
        "prompt",
        "before",
        "after",
    }
    assert (tmp_path / "run/report.png").stat().st_size > 1000
    export.main(export.Config(tmp_path / "run", tmp_path / "out"))
    assert "distillation" in (tmp_path / "out/README.md").read_text()


def test_the_data_s_completions_with_adapters_on_two_devices(toys, tmp_path):
    config = toys.distill(tmp_path, 0.0, devices=2, lora=LoraOptions(rank=2), gold=None)
    distill.main(config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(row["distillation/on_policy"] == 0 for row in rows)
    assert load_stage(tmp_path, "policy", option="--policy").adapters is not None


def test_stopping_and_resuming_changes_nothing(toys, tmp_path):
    """Of two updates, the first from the data and the second from the student."""
    config = lambda run, **more: toys.distill(tmp_path / run, 0.5, seed=1, **more)
    whole = distill.main(config("whole"))
    shares = [
        row["distillation/on_policy"]
        for row in read_metrics(tmp_path / "whole/metrics.jsonl")
    ]
    assert sorted(shares) == [0, 1]
    with killed_at_its_second_save():
        distill.main(config("stopped"))
    assert distill.main(config("stopped", resume=True)) == whole
    lines = [(tmp_path / r / "metrics.jsonl").read_text() for r in ("stopped", "whole")]
    assert lines[0] == lines[1]


def test_another_tokenizer_is_refused(toys, tmp_path):
    model = TransformerConfig(
        vocab_size=280,
        d_model=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        d_head=8,
        d_ff=16,
        max_length=128,
    )
    sft.main(toys.sft(tmp_path / "other", model=model))
    config = toys.distill(tmp_path / "run", teacher=tmp_path / "other")
    with pytest.raises(UserError, match="--teacher .*other: its tokenizer"):
        distill.main(config)


def test_prompts_alone_have_no_completions(toys, tmp_path):
    config = toys.distill(tmp_path)
    half = DistillationConfig(SamplingConfig(max_new_tokens=8), on_policy=0.5)
    with pytest.raises(UserError, match="completion"):
        distill.main(dataclasses.replace(config, distillation=half))
