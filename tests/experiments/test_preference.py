"""`experiments.preference` of good and bad completions, and with a moving reference."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from interrupted import killed_at_its_second_save

from experiments import cli, export, preference
from experiments.inputs import DataConfig
from experiments.runs import LoraOptions
from rlhf_jax import checkpoint
from rlhf_jax.errors import UserError
from rlhf_jax.ops.unpaired_loss import UnpairedKind
from rlhf_jax.stages import load_stage
from rlhf_jax.steps import PreferenceConfig, UnpairedConfig
from rlhf_jax.tracking import read_metrics

START = {"kto": 0.5, "bco": math.log(2), "apo_zero": 0.5}


def _config(toys, run_dir, kind: UnpairedKind = "kto", **changes):
    """Two updates of eight completions; 4 rankings of 4 have at most 16 of them."""
    options = UnpairedConfig(kind, beta=0.5)
    changes = {"preference": options, "batch_size": 6} | changes
    return toys.preference(run_dir, **changes)


@pytest.mark.parametrize("kind", START)
def test_rankings_as_good_and_bad(toys, tmp_path, kind):
    """The first update starts from the reference; the next one is away from it."""
    found = preference.main(_config(toys, tmp_path / "run", kind))
    assert 0 <= found["preference/eval_accuracy"] <= 1
    assert found["preference/eval_good_reward"] != 0
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")[:2]
    assert first["preference/loss"] == pytest.approx(START[kind], abs=1e-5)
    assert first["preference/good_reward"] == pytest.approx(0, abs=1e-5)
    assert second["preference/good_reward"] != 0
    assert ("preference/baseline" in first) == (kind != "apo_zero")
    if kind == "kto":
        export.main(export.Config(tmp_path / "run", tmp_path / "out"))
        assert "optimisation (kto)" in (tmp_path / "out/README.md").read_text()


def test_labels_with_adapters_on_two_devices(toys, tmp_path):
    rows = [{"text": f"a {w} film", "label": int(w == "good")} for w in ("good", "bad")]
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    config = _config(
        toys,
        tmp_path / "run",
        lora=LoraOptions(rank=2),
        devices=2,
        preference=UnpairedConfig(micro_batches=2),
        batch_size=4,
    )
    config = dataclasses.replace(config, data=DataConfig(str(data), eval_fraction=0.25))
    assert preference.main(config)["judgements"] == 4
    assert load_stage(tmp_path / "run", "policy", option="--policy").adapters


SYNCED = {
    "dpo": {"preference": PreferenceConfig(), "ref_mixup_alpha": 0.5},
    "bco": {"preference": UnpairedConfig("bco"), "batch_size": 6},
}


@pytest.mark.parametrize("name", SYNCED)
def test_a_moving_reference_stops_and_goes_on(toys, tmp_path, name, monkeypatch):
    config = lambda run, **more: toys.preference(
        tmp_path / run, ref_sync_every=1, **SYNCED[name], **more
    )
    whole = preference.main(config("whole"))
    with killed_at_its_second_save():
        preference.main(config("stopped"))
    assert preference.main(config("stopped", resume=True)) == whole
    lines = [
        (tmp_path / run / "metrics.jsonl").read_text() for run in ("stopped", "whole")
    ]
    assert lines[0] == lines[1]
    policy = load_stage(tmp_path / "whole", "policy", option="--policy")
    reference = checkpoint.restore_params(tmp_path / "whole/checkpoints", "ref_params")
    start = load_stage(toys.root / "sft", "policy", option="--policy")
    embeddings = [
        np.asarray(params["trunk"]["embed"]["embedding"])
        for params in (start.params, reference, policy.params)
    ]
    assert np.any(embeddings[1] != embeddings[0])
    # Copied after the last update; mixed, it is behind.
    assert np.array_equal(embeddings[1], embeddings[2]) == (name == "bco")


@pytest.mark.parametrize(
    "options, named",
    [
        ({"ref_sync_every": 0}, "ref_sync_every = 0"),
        ({"ref_sync_every": 2, "preference": PreferenceConfig("cpo")}, "cpo has none"),
        ({"ref_mixup_alpha": 0.5}, "ref_mixup_alpha = 0.5"),
        ({"ref_mixup_alpha": 1.5, "ref_sync_every": 2}, "ref_mixup_alpha = 1.5"),
    ],
)
def test_options_of_the_reference(options, named):
    with pytest.raises(UserError, match=named):
        preference.Config(**options)


def test_the_preset_chooses_the_options(monkeypatch):
    presets = {
        "default": preference.Config(),
        "unpaired": preference.Config(preference=UnpairedConfig()),
    }
    args = ["script", "--preset", "unpaired", "--preference.kind", "bco"]
    monkeypatch.setattr(sys, "argv", args)
    found = []
    cli.run(found.append, presets, description="")
    assert found[0].preference == UnpairedConfig("bco")
