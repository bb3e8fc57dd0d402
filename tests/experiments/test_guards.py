"""Scripts go on past a bad batch, name it, stop in time, and can be resumed."""

import dataclasses
import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import policy, rollouts, sft
from experiments.inputs import DataConfig
from rlhf_jax.checkpoint import restore_params
from rlhf_jax.errors import UserError
from rlhf_jax.guards import GuardConfig, all_finite
from rlhf_jax.stages import FLOAT32, load_policy
from rlhf_jax.tracking import read_metrics

BAD = 5  # the line of the file whose text makes the network's numbers NaN


@pytest.fixture
def spoilt(toys, tmp_path, monkeypatch):
    """An SFT config with a bad row, which is in one batch of an epoch at most."""
    path = tmp_path / "reviews.jsonl"
    texts = [f"film {i} was {'~' if i == BAD else 'fine'}" for i in range(1, 17)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = load_policy(toys.root / "sft", FLOAT32).tokenizer
    [bad] = set(tokenizer("~").input_ids) - set(tokenizer("").input_ids)
    apply_of = sft.policy_apply

    def noisy(model):
        apply_fn = apply_of(model)

        def apply(params, batch, **options):
            found = apply_fn(params, batch, **options)
            rows = jnp.any(batch.tokens == bad, axis=1)[:, None, None]
            spoil = lambda x: jnp.where(rows, jnp.nan, x)
            assert found.readout is not None
            readout = found.readout._replace(hidden=spoil(found.readout.hidden))
            return found._replace(logits=spoil(found.logits), readout=readout)

        return apply

    monkeypatch.setattr(sft, "policy_apply", noisy)
    data = DataConfig(str(path), toys.data("reviews", 16).eval_path)
    data = dataclasses.replace(data, data_dir=toys.root / "data")
    options = {"data": data, "policy": toys.root / "sft", "epochs": 3}
    return lambda run_dir, **changes: toys.sft(run_dir, **options | changes)


def faults(run_dir):
    lines = (run_dir / "faults.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.fault(14)
def test_a_bad_row_is_skipped_and_named(spoilt, tmp_path, capsys):
    run_dir = tmp_path / "run"
    sft.main(spoilt(run_dir))
    found = faults(run_dir)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert 1 <= len(found) <= 3 and len(lines) == 6
    skipped = [line["step"] for line in lines if line["optim/skipped"]]
    assert [fault["step"] for fault in found] == skipped
    for fault in found:
        assert len(fault["rows"]) == 8 == len(fault["origins"])
        assert any(name.endswith(f"reviews.jsonl:{BAD}") for name in fault["origins"])
        assert fault["not_finite"]["sft/loss"] == "NaN"
    assert all(np.isfinite([line["sft/eval_loss"] for line in lines[-1:]]))
    params = restore_params(run_dir / "checkpoints")
    assert all_finite(params)
    shown = capsys.readouterr()
    assert shown.err.count("warning: step") == len(found)
    assert f"{len(found)} updates were skipped, see faults.jsonl" in shown.out


@pytest.mark.fault(14)
def test_a_run_that_stopped_goes_on(spoilt, tmp_path, capsys):
    sft.main(spoilt(tmp_path / "whole"))
    first = faults(tmp_path / "whole")[0]["step"]
    config = spoilt(tmp_path / "run", guard=GuardConfig(max_skipped=1), resume=True)
    with pytest.raises(UserError) as error:
        sft.main(config)
    message = str(error.value)
    assert message.startswith(f"step {first}, rows ") and "\n" not in message
    assert "sft/loss = nan" in message and "--resume" in message
    assert restore_params(tmp_path / "run" / "checkpoints") is not None or first == 1
    sft.main(dataclasses.replace(config, guard=GuardConfig()))
    found, expected = (
        restore_params(tmp_path / name / "checkpoints") for name in ("run", "whole")
    )
    chex.assert_trees_all_equal(found, expected)
    for name in ("faults.jsonl", "metrics.jsonl"):
        one, other = ((tmp_path / d / name).read_text() for d in ("run", "whole"))
        assert one == other


@pytest.mark.fault(14)
@pytest.mark.parametrize("draws", [1, 2])
def test_a_score_that_is_not_finite_is_named_by_its_prompt(
    toys, tmp_path, monkeypatch, draws
):
    """The first response of each batch scores NaN: no update is made."""
    learned_reward = rollouts.learned_reward
    spoil = lambda *trees, **options: (
        learned_reward(*trees, **options).at[0].set(jnp.nan)
    )
    monkeypatch.setattr(rollouts, "learned_reward", spoil)
    guard = GuardConfig(max_skipped=2)
    config = toys.policy(tmp_path, "grpo", guard=guard, draws=draws)
    with pytest.raises(UserError) as error:
        policy.main(config)
    found = faults(tmp_path)
    assert [fault["step"] for fault in found] == [1, 2]
    for fault in found:
        assert len(fault["rows"]) == 2 == len(fault["origins"])
        bad = {score["row"] for score in fault["scores"]}
        assert bad <= set(fault["rows"]) and fault["scores"][0]["score"] == "NaN"
        assert fault["not_finite"]["objective/score"] == "NaN"
    message = str(error.value)
    assert message.startswith("step 2, rows ") and "\n" not in message
    assert f"score nan of row {found[1]['scores'][0]['row']}" in message
    before = restore_params(toys.root / "sft" / "checkpoints")
    after = restore_params(tmp_path / "checkpoints", "0/params")
    chex.assert_trees_all_equal(after, before)
