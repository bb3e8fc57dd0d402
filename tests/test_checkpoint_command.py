"""``python -m rlhf_jax.checkpoint`` on a run of two stages."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from rlhf_jax.checkpoint import CheckpointError, save
from rlhf_jax.checkpoint.__main__ import show_inspect, show_list, show_verify


@pytest.fixture
def run(tmp_path):
    for stage, steps in (("sft", (10, 20)), ("ppo", (5,))):
        for step in steps:
            state = {"params": {"w": jnp.ones((3, 4))}, "step": jnp.int32(step)}
            place = {"loader": {"next_index": 8 * step}}
            directory = tmp_path / stage / "checkpoints"
            save(directory, step, state, host_state=place, keep=2)
    return tmp_path


def test_list(run, capsys):
    assert show_list(run) == 0
    shown = capsys.readouterr().out
    assert [shown.count(f" {step} ") for step in (5, 10, 20)] == [1, 1, 1]
    assert shown.count("saved") == 3


def test_verify_names_what_is_damaged(run, capsys):
    assert show_verify(run) == 0
    assert capsys.readouterr().out.count("sound") == 3
    (run / "sft/checkpoints/20/state/_METADATA").write_text("{}")
    (run / "sft/checkpoints/7.damaged").mkdir()
    assert show_verify(run) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("sound") == 2 and "state/_METADATA: expected" in shown
    assert "7.damaged" in shown and "put aside" in shown


def test_inspect(run, capsys):
    assert show_inspect(run / "sft") == 0
    shown = capsys.readouterr().out
    assert "step 20" in shown and "float32[3, 4]" in shown and "13" in shown
    assert '"next_index": 160' in shown
    assert show_inspect(run / "sft", 10) == 0
    assert '"next_index": 80' in capsys.readouterr().out


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here or below"):
        show_list(tmp_path)


def test_as_a_command(run):
    command = [sys.executable, "-m", "rlhf_jax.checkpoint"]
    done = subprocess.run([*command, "verify", run], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    nothing = [*command, "list", run / "nothing"]
    done = subprocess.run(nothing, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
