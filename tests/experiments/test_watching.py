"""Runs that criteria end and alarms soften; resumed, they decide as if unbroken."""

import dataclasses
import json

import optax
import pytest
from interrupted import killed_at_its_second_save

from experiments import expert_iteration, online_preference, policy
from experiments.watching import Watch, WatchConfig
from rlhf_jax import checkpoint
from rlhf_jax.alarms import AlarmConfig
from rlhf_jax.criteria import StopConfig
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json
from rlhf_jax.steps import KLConfig, create_policy_state
from rlhf_jax.tracking import MetricsLogger, TrackingConfig, read_metrics

GOLD = "rlhf_jax.data.tiny_reviews:gold_reward"
REPEATS = (0.0, 0.1, 0.1, 0.5, 0.5, 0.1, 0.1)  # window 2: rings after 4, after 6
SOFTEN = AlarmConfig("soften", window=2)


def at(coef):
    """A state with this KL coefficient."""
    return create_policy_state(lambda: None, {}, optax.identity(), kl_coef=coef)


def play(run_dir, config, repeats=REPEATS, restored=None, state=None):
    """What a loop does, its metrics given; (the watch, the state at the end)."""
    watch = Watch(run_dir, config, restored, len(repeats))
    state = state or at(1.0)
    tracking = TrackingConfig()
    with MetricsLogger(run_dir, tracking, restored_step=restored) as logger:
        for step in watch.steps():
            row = {"rollout/repetition": repeats[step - 1], "objective/score": step}
            logger.log(step, row)
            watch.add(step, row)
            state = watch.soften(state)
    return watch, state


def rung(run_dir):
    lines = (run_dir / "alarms.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_an_alarm_is_shown_and_written_down(tmp_path, capsys):
    config = WatchConfig(alarm=AlarmConfig(window=2))
    watch, state = play(tmp_path, config)
    assert watch.ended == "all steps" and state.kl_coef == 1
    assert [alarm["step"] for alarm in rung(tmp_path)] == [4, 6]
    text = "repetition 0.3, was 0.05"
    expected = {"step": 4, "kinds": ["repetition"], "text": text, "on_alarm": "warn"}
    assert rung(tmp_path)[0] == expected
    assert f"warning: step 4: alarm: {text}\n" in capsys.readouterr().err
    play(tmp_path, config, repeats=[0.1] * 5)  # begins anew: they are gone
    assert not (tmp_path / "alarms.jsonl").exists()


def test_an_alarm_ends_a_run_for_good(tmp_path, capsys):
    config = WatchConfig(alarm=AlarmConfig("stop", window=2))
    watch, _ = play(tmp_path, config)
    assert watch.ended == "alarm: repetition 0.3, was 0.05"
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert f"{tmp_path}: ends at 4/7: alarm: rep" in capsys.readouterr().out
    again = Watch(tmp_path, config, 4, 7)
    assert again.nothing_to_do("iterations") and list(again.steps()) == []
    said = f"{tmp_path}: nothing to do (4/7 iterations): {watch.ended}\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("restored, coef", [(3, 1), (4, 2), (5, 2), (6, 4)])
def test_a_resumed_run_softens_what_is_not_softened(tmp_path, restored, coef):
    """β at a checkpoint has the alarms before it, and those after come once more."""
    config = WatchConfig(alarm=SOFTEN)
    whole, state = play(tmp_path, config)
    lines = rung(tmp_path)
    assert state.kl_coef == 4 and len(lines) == 2
    saved = at(coef)
    again, resumed = play(tmp_path, config, restored=restored, state=saved)
    assert resumed.kl_coef == 4 and again.ended == whole.ended == "all steps"
    assert rung(tmp_path) == lines


def test_lines_that_decide_must_be_there(tmp_path):
    config = WatchConfig(stop=StopConfig(patience=3))
    play(tmp_path, config)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[1:]))
    with pytest.raises(UserError, match="a line for each of steps 1 to 4, by which"):
        Watch(tmp_path, config, 4, 7)
    assert Watch(tmp_path, WatchConfig(), 4, 7).ended is None  # nothing depends on it


# Scripts.


def test_a_target_ends_ppo_and_a_higher_one_goes_on(toys, tmp_path, capsys):
    """With referees: the reward model itself, which agrees with itself."""
    config = toys.policy(tmp_path / "run", referee=(str(toys.root / "reward"),))
    config = dataclasses.replace(config, save_every=9)
    enough = dataclasses.replace(config, stop=StopConfig(score=-99.0))
    summary = policy.main(enough)
    assert checkpoint.latest_step(tmp_path / "run/checkpoints") == 1
    stopped = load_json(tmp_path / "run/summary.json")
    why = stopped.pop("stopped")
    assert why.startswith("target score: objective/score = ") and stopped == summary
    [row] = read_metrics(tmp_path / "run/metrics.jsonl")
    assert row["objective/disagreement"] == 0 != row["objective/referee"]
    assert 0 <= row["rollout/repetition"] < 1
    capsys.readouterr()
    assert policy.main(dataclasses.replace(enough, resume=True)) == summary
    assert f"nothing to do (1/2 iterations): {why}" in capsys.readouterr().out
    # Nothing of what is computed depends on the target.
    policy.main(dataclasses.replace(config, resume=True))
    assert load_json(tmp_path / "run/summary.json")["stopped"] == "all steps"
    policy.main(toys.policy(tmp_path / "whole", save_every=9))
    rows = [read_metrics(tmp_path / d / "metrics.jsonl") for d in ("run", "whole")]
    for mine, plain in zip(*rows, strict=True):
        assert mine.items() >= plain.items() and len(mine) == len(plain) + 2


def test_softening_ppo_is_part_of_its_state(toys, tmp_path):
    """An alarm at every iteration but the first; killed after one that was saved."""
    alarm = AlarmConfig("soften", factor=3.0, window=1, length=1.0001)
    config = lambda name: toys.policy(
        tmp_path / name, alarm=alarm, episodes=40, save_every=2
    )
    whole = policy.main(config("whole"))
    with killed_at_its_second_save():
        policy.main(config("stopped"))
    resumed = dataclasses.replace(config("stopped"), resume=True)
    assert policy.main(resumed) == whole
    for name in ("metrics.jsonl", "alarms.jsonl"):
        texts = [(tmp_path / d / name).read_text() for d in ("whole", "stopped")]
        assert texts[0] == texts[1]
    rows = read_metrics(tmp_path / "whole/metrics.jsonl")
    coefs = [row["objective/kl_coef"] for row in rows]
    steps = [alarm["step"] for alarm in rung(tmp_path / "whole")]
    assert 2 in steps
    for step, (before, after) in enumerate(zip(coefs, coefs[1:], strict=False), 1):
        factor = 3 if step in steps else 1
        assert after == pytest.approx(factor * before)


@pytest.mark.parametrize("script", ["online", "expert"])
def test_other_scripts_are_ended_too(toys, tmp_path, script, capsys):
    """With a function as the referee, the truth."""
    main = {"online": online_preference, "expert": expert_iteration}[script].main
    config = getattr(toys, script)(tmp_path, referee=(GOLD,), save_every=9)
    config = dataclasses.replace(config, stop=StopConfig(score=-99.0))
    main(config)
    [row] = read_metrics(tmp_path / "metrics.jsonl")
    assert row["objective/referee"] == pytest.approx(row["objective/gold"])
    assert 0 <= row["rollout/repetition"] < 1 and "objective/disagreement" not in row
    why = load_json(tmp_path / "summary.json")["stopped"]
    assert why.startswith("target score: ")
    capsys.readouterr()
    main(dataclasses.replace(config, resume=True))
    assert "nothing to do (1/2 " in capsys.readouterr().out


def test_what_a_script_cannot_do_is_refused(toys, tmp_path):
    soften = {"alarm": AlarmConfig("soften")}
    for script in (toys.online, toys.expert):
        with pytest.raises(UserError, match="soften: there is no KL coefficient"):
            script(tmp_path, **soften)
    config = toys.policy(tmp_path)
    loose = dataclasses.replace(config.algorithm, kl=KLConfig(coef=0.0))
    for options, words in (
        (soften, "soften: there is no KL coefficient above 0"),
        ({"stop": StopConfig(kl=9.0)}, "stop.kl = 9.0: with kl.coef = 0 no KL"),
    ):
        with pytest.raises(UserError, match=words):
            dataclasses.replace(config, algorithm=loose, **options)
