"""A script that ends well says in its run directory where its numbers are from."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_jax
from experiments import cli, export, provenance, sft
from experiments.provenance import PROVENANCE, commit
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import RunError, load_json
from rlhf_jax.tracking import read_metrics


def run(monkeypatch, main, config, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *args])
    cli.run(main, {"toy": config, "other": config}, description="")


def test_what_a_run_says(toys, tmp_path, monkeypatch):
    made = toys.sft(tmp_path / "run")
    run(monkeypatch, sft.main, made, "--preset", "other", "--optim.eps", "1e-7")
    found = load_json(made.run_dir / PROVENANCE)
    assert found["script"] == "experiments.sft" and found["preset"] == "other"
    typed = "--preset other --optim.eps 1e-7"
    assert found["command"] == f"python -m experiments.sft {typed}"
    assert found["commit"] == commit() and found["resumed"] is False
    assert found["cores"] >= 1 and found["processes"] == 1 and found["cpu"]
    assert found["devices"] == {"cpu": 1}  # of eight
    assert 0 < found["cpu_seconds"] and 0 < found["seconds"] < 600
    assert found["ended"].endswith("+00:00")
    last = read_metrics(made.run_dir / "metrics.jsonl")[-1]
    assert found["returned"] == {"sft/eval_loss": last["sft/eval_loss"]}
    # A finished run is left as it is, and by a script that only reads it, too.
    before = (made.run_dir / PROVENANCE).read_bytes()
    run(monkeypatch, sft.main, made, "--optim.eps", "1e-7", "--resume")
    run(monkeypatch, export.main, export.Config(made.run_dir, tmp_path / "out"))
    assert (made.run_dir / PROVENANCE).read_bytes() == before


@dataclasses.dataclass(frozen=True)
class Config:
    run_dir: Path
    label: str = "a b"


def begin(config: Config, returned: object = None) -> object:
    """What a script does first, and what it returns."""
    config.run_dir.mkdir(exist_ok=True)
    text = json.dumps({"run_dir": str(config.run_dir), "label": config.label})
    (config.run_dir / "config.json").write_text(text)
    return returned


def test_a_run_that_goes_on_says_so(tmp_path):
    config = Config(tmp_path / "run")
    said = lambda: load_json(config.run_dir / PROVENANCE)

    def add(config: Config) -> None:
        begin(config)
        with (config.run_dir / "metrics.jsonl").open("a") as file:
            file.write("{}\n")

    provenance.recorded(add, config, preset="first")
    assert (said()["preset"], said()["resumed"]) == ("first", False)
    provenance.recorded(begin, config, preset="adds nothing")
    assert (said()["preset"], said()["resumed"]) == ("first", False)
    provenance.recorded(add, config, preset="second")
    assert (said()["preset"], said()["resumed"]) == ("second", True)


def fail(config: Config) -> None:
    begin(config)
    raise UserError("it did not end well")


def test_a_run_that_fails_says_nothing(tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        run(monkeypatch, fail, Config(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_options_are_quoted_and_nan_is_null(tmp_path, monkeypatch):
    found = lambda config: begin(config, {"loss": float("nan"), "kept": 3})
    run(monkeypatch, found, Config(tmp_path / "run"), "--label", "it's so")
    said = load_json(tmp_path / "run" / PROVENANCE)
    assert said["command"].endswith("""--label 'it'"'"'s so'""")
    assert said["returned"] == {"loss": None, "kept": 3.0}


@pytest.mark.parametrize("returned", [None, [1.0], {"a": {"b": 1.0}}, {"a": "b"}])
def test_what_is_no_numbers_by_name_is_left_to_the_files(tmp_path, returned):
    config = Config(tmp_path / "run")
    provenance.recorded(lambda c: begin(c, returned), config, preset="default")
    assert load_json(tmp_path / "run" / PROVENANCE)["returned"] is None


def test_a_full_disk_does_not_undo_the_run(tmp_path, monkeypatch, capsys):
    def full(path, value):
        raise RunError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(provenance, "save_json", full)
    run(monkeypatch, begin, Config(tmp_path / "run"))
    assert capsys.readouterr().err.startswith("warning: ")


def test_the_commit(tmp_path, monkeypatch):
    """Of the folder of the package alone, and only where git has it."""
    package = tmp_path / "rlhf_jax"
    package.mkdir()
    file = package / "__init__.py"
    file.write_text("")
    monkeypatch.setattr(rlhf_jax, "__file__", str(file))
    assert commit().startswith(("version ", "not known"))

    def git(*args: str) -> str:
        who = "-c", "user.name=a", "-c", "user.email=a@b.c"
        asked = ["git", *who, "-C", str(tmp_path), *args]
        return subprocess.check_output(asked, text=True).strip()

    git("init", "-q")
    assert commit().startswith(("version ", "not known"))  # nothing is committed yet
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert commit() == git("rev-parse", "--short", "HEAD")
    file.write_text("edited = True\n")
    assert commit() == git("rev-parse", "--short", "HEAD") + "-dirty"
    inside = tmp_path / "lib/rlhf_jax/__init__.py"  # installed in another's project
    inside.parents[1].mkdir()
    monkeypatch.setattr(rlhf_jax, "__file__", str(inside))
    assert commit().startswith(("version ", "not known"))
    monkeypatch.setattr(rlhf_jax, "__file__", str(file))
    monkeypatch.setenv("PATH", "")
    assert commit().startswith(("version ", "not known"))
