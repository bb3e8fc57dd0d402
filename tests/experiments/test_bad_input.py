"""What a person got wrong ends in one line that says what to do, before compilation."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import cli, policy, reward_model, sft
from experiments.inputs import DataConfig
from rlhf_jax.errors import UserError

GOLD = "rlhf_jax.data.tiny_reviews:gold_reward"

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compilations(monkeypatch):
    """Counts what XLA compiles during the test, but for a random key.

    What earlier tests compiled is forgotten: it would hide compilations.
    """
    count = []
    jax.clear_caches()
    jax.random.key(0)
    compiled = "/jax/core/compile/backend_compile_duration"
    listener = lambda event, *_, **__: count.append(1) if event == compiled else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield count
    jax.monitoring.unregister_event_duration_listener(listener)


def _error(script, config, capsys, args=()) -> str:
    """The message and exit code of a script that is run with a config."""
    presets = {"toy": config, "other": config}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.run(script.main, presets, description="")
    assert stopped.value.code == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    return message


def _jsonl(path: Path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_listener_counts(compilations):
    jax.jit(lambda x: x * 3.25)(1.5)
    assert compilations


def test_data_file(toys, tmp_path, capsys, compilations):
    broken = tmp_path / "demonstrations.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"text": "a film"}\n')[:-9])
    cases = [
        ("nothing.jsonl", ["nothing.jsonl"]),
        (str(broken), ["demonstrations.jsonl.gz"]),
        (_jsonl(tmp_path / "a.jsonl", {"txt": "a"}), ["a.jsonl:1", "text", "txt"]),
        (_jsonl(tmp_path / "b.jsonl", {"text": None}), ["b.jsonl:1", "null"]),
        (
            _jsonl(tmp_path / "c.jsonl", {"text": " ".join(map(str, range(99)))}),
            ["c.jsonl:1", "128"],
        ),
    ]
    for number, (path, words) in enumerate(cases):
        data = DataConfig(path, eval_path=path)
        message = _error(sft, toys.sft(tmp_path / str(number), data=data), capsys)
        assert all(word in message for word in words), message
    assert not compilations


def test_missing_column_of_preferences(toys, tmp_path, capsys, compilations):
    path = _jsonl(tmp_path / "p.jsonl", {"prompt": "a", "chosen": " b"})
    config = toys.reward(tmp_path / "run", data=DataConfig(path))
    message = _error(reward_model, config, capsys)
    assert "p.jsonl:1" in message and "rejected" in message
    assert not compilations


def test_prompt_longer_than_the_context(toys, tmp_path, capsys, compilations):
    message = _error(policy, toys.policy(tmp_path / "a", prompt_length=125), capsys)
    assert "prompt_length = 125" in message and "128 tokens" in message
    message = _error(policy, toys.policy(tmp_path / "b", prompt_length=3), capsys)
    assert "tiny_reviews/prompts" in message and "keep_end" in message
    assert not compilations


def test_groups_that_do_not_fill_a_batch(toys, tmp_path):
    with pytest.raises(UserError, match="batch_size = 6: .* sampling.completions = 4"):
        toys.policy(tmp_path, "grpo", batch_size=6)


def test_policy_options_that_contradict(toys, tmp_path):
    wrong = [
        ({"lag": -1}, "lag = -1: expected 0 or more"),
        ({"draws": 0}, "draws = 0: expected 1 or more"),
        ({"lag": 1, "prompt_buckets": (8,)}, "lag = 1: expected no prompt_buckets"),
        ({"demonstrations": "rows.jsonl"}, "ptx_coef and demonstrations"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            toys.policy(tmp_path, **change)


def test_unknown_preset(toys, tmp_path, capsys):
    message = _error(policy, toys.policy(tmp_path), capsys, ["--preset", "openai"])
    assert "--preset openai" in message and "toy, other" in message


@pytest.mark.fault(10)
def test_run_directory(toys, tmp_path, capsys, compilations):
    (tmp_path / "file").write_text("")
    message = _error(sft, toys.sft(tmp_path / "file" / "run"), capsys)
    assert "--run-dir" in message and "file/run" in message
    message = _error(sft, toys.sft(toys.root / "sft"), capsys)
    assert "--resume" in message
    message = _error(sft, toys.sft(toys.root / "sft", seed=9, resume=True), capsys)
    assert "seed: 0 → 9" in message
    assert not compilations


def test_earlier_stages(toys, tmp_path, capsys, compilations):
    cases = [
        ({"policy": tmp_path / "none"}, "--policy"),
        ({"policy": toys.root / "reward"}, "expected a policy model"),
        ({"reward": str(toys.root / "sft")}, "expected a reward model"),
        ({"reward": "no.such:thing"}, "no.such:thing"),
        ({"reward_kind": "logit"}, "--reward-kind logit"),
        ({"reward": GOLD, "critic": "reward"}, "--critic head"),
        ({"reward": "builtins:len"}, "len takes obj: expected some of prompts"),
        ({"stop_text": "no token is this"}, "stop_text"),
        ({"devices": 99}, "devices = 99"),
        ({"preset": "grpo", "critic": "head"}, "advantages by group have no critic"),
    ]
    for number, (change, word) in enumerate(cases):
        message = _error(policy, toys.policy(tmp_path / str(number), **change), capsys)
        assert word in message, message
    assert not compilations


def test_rows_that_cannot_be_cut_or_packed(toys, tmp_path, capsys, compilations):
    cases = [
        (sft, toys.sft, {"micro_batches": 3}, "micro_batches = 3"),
        (sft, toys.sft, {"pack_length": 3}, "pack_length = 3"),
        (sft, toys.sft, {"pack_length": 129}, "pack_length = 129"),
        (reward_model, toys.reward, {"micro_batches": 3}, "micro_batches = 3"),
        (reward_model, toys.reward, {"pack_length": 3}, "pack_length = 3"),
        (
            reward_model,
            toys.reward,
            {"pack_length": 128, "kind": "ranking"},
            "pack_length = 128: several such",
        ),
        (policy, toys.policy, {"pack_length": 71}, "pack_length = 71: expected 72"),
        (policy, toys.policy, {"pack_length": 129}, "pack_length = 129"),
    ]
    for number, (script, configure, change, word) in enumerate(cases):
        config = configure(tmp_path / str(number), **change)
        message = _error(script, config, capsys)
        assert word in message, message
    assert not compilations


def test_a_value_out_of_range_names_its_option(tmp_path):
    command = [sys.executable, "-m", "experiments.policy", "--algorithm.epochs", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "epochs" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "script",
    ["quickstart", "sft", "reward_model", "preference", "policy", "online_preference"],
)
def test_help_explains_itself(script):
    command = [sys.executable, "-m", f"experiments.{script}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--run-dir" in done.stdout and "python -m experiments." in done.stdout
