"""A run directory is made once, and resumed only with its own configuration."""

import dataclasses
from pathlib import Path

import pytest

from rlhf_jax.rundir import RunError, create_run_dir, load_json, save_json


@dataclasses.dataclass(frozen=True)
class Ppo:
    lr: float = 3e-6
    epochs: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    data: Path = Path("a/b")
    layers: tuple[int, ...] = (1, 2)
    reference: str | None = None
    ppo: Ppo = dataclasses.field(default_factory=Ppo)
    run_dir: Path = Path("runs/x")
    resume: bool = False
    devices: int | None = None


def with_results(path, config):
    run = create_run_dir(path, config, resume=False)
    (run / "metrics.jsonl").write_text("")
    return run


def test_writes_the_nested_configuration(tmp_path):
    run = create_run_dir(tmp_path / "a" / "b", Config(), resume=False)
    assert load_json(run / "config.json") == {
        "data": "a/b",
        "layers": [1, 2],
        "reference": None,
        "ppo": {"lr": 3e-6, "epochs": 4},
        "run_dir": "runs/x",
        "resume": False,
        "devices": None,
    }
    names = sorted(p.name for p in run.iterdir())
    assert names == [".lock", "config.json"]  # no temporary files


def test_run_without_results_may_start_again(tmp_path):
    create_run_dir(tmp_path / "r", Config(), resume=False)
    other = Config(ppo=Ppo(lr=1.0))
    run = create_run_dir(tmp_path / "r", other, resume=False)
    assert load_json(run / "config.json")["ppo"]["lr"] == 1.0


def test_existing_run_is_not_touched_without_resume(tmp_path):
    with_results(tmp_path / "r", Config())
    with pytest.raises(RunError, match=r"--run-dir .*/r: holds a run .* --resume"):
        create_run_dir(tmp_path / "r", Config(), resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_directory_of_something_else_is_refused(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"no config.json, so it is no run"):
        create_run_dir(tmp_path, Config(), resume=resume)
    assert not (tmp_path / "config.json").exists()


def test_resume_goes_on_with_the_same_configuration(tmp_path):
    with_results(tmp_path / "r", Config())
    # Where the run lies and how it is run may differ.
    moved = Config(run_dir=Path("elsewhere"), resume=True, devices=4)
    run = create_run_dir(tmp_path / "r", moved, resume=True)
    assert load_json(run / "config.json")["run_dir"] == "runs/x"


def test_resume_where_nothing_is_starts(tmp_path):
    run = create_run_dir(tmp_path / "r", Config(), resume=True)
    assert (run / "config.json").exists()


@pytest.mark.fault(11)
def test_resume_with_another_configuration_names_each_field(tmp_path):
    with_results(tmp_path / "r", Config())
    other = Config(reference="gpt2", layers=(1, 3), ppo=Ppo(lr=1e-5))
    with pytest.raises(RunError) as error:
        create_run_dir(tmp_path / "r", other, resume=True)
    message = str(error.value)
    assert (
        "layers: [1, 2] → [1, 3]; ppo.lr: 3e-06 → 1e-05; "
        'reference: null → "gpt2"' in message
    )
    assert "epochs" not in message and "\n" not in message


def test_resume_names_fields_that_came_and_went(tmp_path):
    run = with_results(tmp_path / "r", Config())
    saved = load_json(run / "config.json")
    del saved["reference"]
    save_json(run / "config.json", saved | {"beta": 1})
    with pytest.raises(RunError, match=r"beta: 1 → \(absent\); .*\(absent\) → null"):
        create_run_dir(run, Config(), resume=True)


@pytest.mark.parametrize("address", ["gs://bucket/run", Path("s3://bucket/run")])
def test_a_bucket_is_no_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="which a bucket cannot do: choose a folder"):
        create_run_dir(address, Config(), resume=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.fault(10)
def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=r"--run-dir .*file.*: cannot be written \("):
            create_run_dir(path, Config(), resume=False)


@pytest.mark.fault(10)
def test_read_only_directory(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("rlhf_jax.rundir.tempfile.TemporaryFile", refuse)
    with pytest.raises(RunError, match=r"\(Read-only file system\): choose a dir"):
        create_run_dir(tmp_path, Config(), resume=True)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_value_without_a_json_form(tmp_path, value):
    with pytest.raises(RunError, match="a.json: cannot be written as JSON"):
        save_json(tmp_path / "a.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(8)
@pytest.mark.parametrize("operation", ["write_text", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, operation):
    path = tmp_path / "a.json"
    save_json(path, {"x": 1})

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, operation, full)
    with pytest.raises(RunError, match="No space left on device"):
        save_json(path, {"x": 2})
    assert load_json(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_broken_json_names_the_line(tmp_path):
    (tmp_path / "a.json").write_text('{\n"x": 1,\n}')
    with pytest.raises(RunError, match=r"a\.json:\d: not JSON"):
        load_json(tmp_path / "a.json")
