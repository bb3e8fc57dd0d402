"""Every script takes two steps at toy size, leaves its files, and resumes exactly."""

import dataclasses
import json
import math

import pytest
from interrupted import killed_at_its_second_save
from stage_toys import check_tokens

from experiments import (
    expert_iteration,
    export,
    online_preference,
    policy,
    preference,
    quickstart,
    reward_model,
    sft,
)
from experiments.calibrating import CALIBRATION
from experiments.inputs import DataConfig
from experiments.judgements import JUDGEMENTS
from experiments.normalizing import sample_policy
from experiments.reading import read_data
from experiments.runs import LoraOptions
from rlhf_jax import checkpoint
from rlhf_jax.errors import UserError
from rlhf_jax.models import score_apply
from rlhf_jax.parallel import local_devices
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.rundir import load_json
from rlhf_jax.stages import load_stage
from rlhf_jax.steps import POLICY_PRESETS, PreferenceConfig
from rlhf_jax.tracking import read_metrics


def _metrics(run_dir):
    return (run_dir / "metrics.jsonl").read_text()


def test_sft_and_reward_leave_what_the_next_stage_needs(toys):
    for stage in ("sft", "reward"):
        run_dir = toys.root / stage
        assert (checkpoint.latest_step(run_dir / "checkpoints") or 0) >= 2
        assert (run_dir / "report.png").stat().st_size > 1000
        assert (run_dir / "tokenizer" / "tokenizer.json").is_file()
    assert "sft/eval_loss" in read_metrics(toys.root / "sft/metrics.jsonl")[-1]
    last = read_metrics(toys.root / "reward/metrics.jsonl")[-1]
    assert 0 <= last["reward/eval_accuracy"] <= 1


def test_packed_rows_in_micro_batches(toys, tmp_path):
    """16 reviews of up to 77 tokens in rows of 128: two or three a row."""
    config = toys.sft(tmp_path, pack_length=128, batch_size=2, micro_batches=2)
    sft.main(config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert 3 <= len(rows) <= 4
    assert all(0 < row["sft/loss"] < 10 for row in rows)
    assert "sft/eval_loss" in rows[-1]


@pytest.mark.parametrize("critic", ["reward", "head"])
def test_ppo_trains_and_its_policy_can_be_loaded(toys, tmp_path, critic):
    summary = policy.main(toys.policy(tmp_path, critic=critic))
    assert summary["before/kl"] == pytest.approx(0, abs=1e-4)
    assert summary["after/kl"] != summary["before/kl"]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["first/approx_kl"] < 1e-6
    assert rows[0]["first/clip_fraction"] == 0
    check_tokens(tmp_path, summary)
    # The trained policy is a policy stage: fine-tuning may go on from it.
    sft.main(toys.sft(tmp_path / "more", policy=tmp_path))


# One of each surrogate; rloo has the KL in the score.
@pytest.mark.parametrize("preset", ["grpo", "rloo", "gspo", "cispo"])
def test_groups_train_a_policy_without_a_critic(toys, tmp_path, preset):
    config = toys.policy(tmp_path / "run", preset)
    summary = policy.main(config)
    assert summary["after/distinct"] > 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["first/approx_kl"] < 1e-6
    assert rows[0]["optim/grad_norm"] > 0
    if config.algorithm.kl.coef:
        assert summary["before/kl"] == pytest.approx(0, abs=1e-4)
        assert summary["after/kl"] != summary["before/kl"]
    else:  # there is no reference
        assert "before/kl" not in summary and "objective/kl" not in rows[0]
    check_tokens(tmp_path / "run", summary)
    if preset == "grpo":
        export.main(export.Config(tmp_path / "run", tmp_path / "out"))
        card = (tmp_path / "out/README.md").read_text()
        assert "advantages by group, loss ppo" in card


def test_groups_with_adapters_packed_on_two_devices(toys, tmp_path):
    """A function as the reward; DAPO's groups of equal scores have no token."""
    config = toys.policy(
        tmp_path,
        "dapo",
        draws=2,
        reward="rlhf_jax.data.tiny_reviews:gold_reward",
        lora=LoraOptions(rank=2),
        pack_length=128,
        devices=2,
    )
    policy.main(config)
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        assert row["objective/score"] == pytest.approx(row["objective/gold"])
    assert load_stage(tmp_path, "policy", option="--policy").adapters is not None


def test_every_preset_cuts_its_batch():
    for name, preset in POLICY_PRESETS.items():
        config = policy.Config(algorithm=preset(policy.GROUPS))
        assert config.batch_size % config.algorithm.minibatches == 0, name


def test_preferences_train_a_policy_that_later_stages_load(toys, tmp_path):
    """The first update starts from the reference; the next one is away from it."""
    found = preference.main(toys.preference(tmp_path / "dpo"))
    assert found["judgements"] == 60 and 0 <= found["preference/eval_accuracy"] <= 1
    assert found["preference/eval_margin"] != 0
    rows = read_metrics(tmp_path / "dpo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["preference/loss"] == pytest.approx(math.log(2))
    assert rows[0]["preference/accuracy"] == 0.5
    assert rows[0]["preference/margin"] == 0 != rows[1]["preference/margin"]
    assert rows[1]["preference/eval_margin"] == found["preference/eval_margin"]
    assert (tmp_path / "dpo" / "report.png").stat().st_size > 1000
    policy.main(toys.policy(tmp_path / "ppo", policy=tmp_path / "dpo"))
    export.main(export.Config(tmp_path / "dpo", tmp_path / "out"))
    assert "preference optimisation (dpo)" in (tmp_path / "out/README.md").read_text()


def test_a_loss_without_a_reference(toys, tmp_path):
    """SimPO asks for a lead of γ: more than log 2 while neither side leads by that."""
    changes = {"preference": PreferenceConfig(kind="simpo", beta=2.0)}
    preference.main(toys.preference(tmp_path, **changes))
    first, *_ = read_metrics(tmp_path / "metrics.jsonl")
    assert math.log(2) < first["preference/loss"] < 2
    assert -8 < first["preference/chosen_logps"] < 0  # a token: log V is 5.7


def test_adapters_packed_pairs_and_another_loss(toys, tmp_path):
    """With adapters the reference is what is below them."""
    changes = {
        "preference": PreferenceConfig(kind="ipo", micro_batches=2),
        "lora": LoraOptions(rank=2),
        "pack_length": 128,
        "batch_size": 4,
        "devices": 2,
    }
    preference.main(toys.preference(tmp_path, **changes))
    first, *_ = read_metrics(tmp_path / "metrics.jsonl")
    assert first["preference/loss"] == pytest.approx(25)  # (0 − 1/(2β))²
    trained = load_stage(tmp_path, "policy", option="--policy")
    assert trained.adapters is not None
    assert "embed" not in trained.adapters["trunk"]


def test_ppo_with_a_python_reward(toys, tmp_path):
    config = toys.policy(
        tmp_path, reward="rlhf_jax.data.tiny_reviews:gold_reward", critic="head"
    )
    policy.main(config)
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        ended = row["rollout/ended"]
        if ended == 1:  # no score was replaced
            assert row["objective/score"] == pytest.approx(row["objective/gold"])


def test_truncate_token_ends_responses(toys, tmp_path):
    policy.main(toys.policy(tmp_path, stop_text=".", gold=None))
    for line in (tmp_path / "samples.jsonl").read_text().splitlines():
        text = json.loads(line)["after"]["completion"]
        assert "." not in text[:-1]


@pytest.mark.parametrize("kind", ["ranking", "choice"])
def test_reward_models_of_rankings(toys, tmp_path, kind):
    config = toys.reward(tmp_path, kind=kind, batch_size=2)
    assert 0 <= reward_model.main(config)["reward/eval_accuracy"] <= 1


def test_binary_reward_model_from_scratch_then_ppo(toys, tmp_path):
    rows = [{"text": f"a {w} film", "label": int(w == "good")} for w in ("good", "bad")]
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 16))
    config = toys.reward(tmp_path / "reward", kind="binary")
    config = dataclasses.replace(config, data=DataConfig(str(data), eval_fraction=0.25))
    found = reward_model.main(config)
    assert found["judgements"] == 8
    calibration = load_json(tmp_path / "reward" / CALIBRATION)
    assert calibration["pairs"] == 8
    assert calibration["accuracy"] == pytest.approx(found["reward/eval_accuracy"])
    summary = policy.main(
        toys.policy(
            tmp_path / "ppo",
            reward=str(tmp_path / "reward"),
            reward_kind="probability",
        )
    )
    assert 0 < summary["before/reward"] < 1


def test_normalized_rewards_have_mean_0_and_std_1(toys, tmp_path):
    config = toys.reward(tmp_path, normalize=True, normalize_samples=16)
    reward_model.main(config)
    reward = load_stage(tmp_path, "reward", option="--reward")
    began = load_stage(config.policy, "policy", option="--policy")
    pairs = JUDGEMENTS["pairwise"]
    tokenize = lambda texts: pairs.tokenize(texts, began.tokenizer, max_length=128)[0]
    read = read_data(config.data, pairs.parsers, run_dir=tmp_path, seed=0)
    examples, held_out = tokenize(read.learned), tokenize(read.held_out)
    length = max(
        len(e.prompt) + max(len(e.chosen), len(e.rejected)) for e in examples + held_out
    )
    given = began, examples, length, local_devices(1)
    samples = sample_policy(*given, count=config.normalize_samples, seed=config.seed)
    scores = sequence_scores(score_apply(reward.model), reward.params, samples)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1, abs=1e-4)


MODULES = {
    "sft": sft,
    "reward": reward_model,
    "preference": preference,
    "policy": policy,
    "online": online_preference,
    "expert": expert_iteration,
}
# Rollouts that wait, and demonstrations, go on where they were, too.
OLDER = {
    "preset": "remax",
    "lag": 1,
    "episodes": 24,
    "demonstrations": "tfds:tiny_reviews/reviews:train[:16]",
}


@pytest.mark.parametrize("stage", [*MODULES, "policy-older"])
def test_stopping_and_resuming_changes_nothing(toys, tmp_path, stage):
    stage, _, older = stage.partition("-")
    main = MODULES[stage].main

    def config(name, **changes):
        if not older:
            return getattr(toys, stage)(tmp_path / name, **changes)
        plain = toys.policy(tmp_path / name, OLDER["preset"])
        corrected = {"importance_cap": 2.0, "ptx_coef": 0.1, "entropy_coef": 0.01}
        algorithm = dataclasses.replace(plain.algorithm, **corrected)
        rest = {name: value for name, value in OLDER.items() if name != "preset"}
        return dataclasses.replace(plain, algorithm=algorithm, **rest, **changes)

    whole = main(config("whole"))

    # With a line of metrics already beyond the first checkpoint.
    with killed_at_its_second_save():
        main(config("stopped"))
    assert main(config("stopped", resume=True)) == whole
    assert _metrics(tmp_path / "stopped") == _metrics(tmp_path / "whole")


def test_a_low_loss_ends_training_for_good(toys, tmp_path, capsys):
    config = toys.sft(tmp_path, eval_every=1, save_every=9, stop_loss=100.0)
    sft.main(config)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 1
    sft.main(dataclasses.replace(config, resume=True))
    assert "nothing to do (1/2 updates)" in capsys.readouterr().out


def test_a_finished_run_has_nothing_to_do(toys, capsys):
    before = _metrics(toys.root / "sft")
    sft.main(toys.sft(toys.root / "sft", resume=True))
    assert "nothing to do (2/2 updates)" in capsys.readouterr().out
    assert _metrics(toys.root / "sft") == before


def test_same_seed_same_metrics_other_seed_others(toys, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sft.main(toys.sft(tmp_path / name, seed=seed))
    assert _metrics(tmp_path / "a") == _metrics(tmp_path / "b")
    assert _metrics(tmp_path / "a") != _metrics(tmp_path / "c")


@pytest.mark.slow
def test_quickstart_stops_and_goes_on(tmp_path, capsys):
    config = quickstart.Config(tmp_path, scale=0.02, devices=1, until="sft")
    quickstart.main(config)
    assert not (tmp_path / "reward").exists()
    quickstart.main(dataclasses.replace(config, until="ppo", resume=True))
    shown = capsys.readouterr().out
    assert "nothing to do" in shown and "best possible 0.857" in shown
    assert (tmp_path / "report.png").stat().st_size > 1000
    with pytest.raises(UserError, match="--resume"):
        quickstart.main(config)
