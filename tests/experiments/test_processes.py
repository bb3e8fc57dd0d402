"""Scripts in two processes: as one, resumed exactly after one died, and agreed."""

import dataclasses
import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from later_stages import run_stages
from pairs import Pair, start_pair, wait_until

from experiments import sft
from rlhf_jax.tracking import read_metrics

pytestmark = pytest.mark.slow
HEARTBEAT_S = 10
UPDATES = 60


def command(config: sft.Config, *changes: str) -> list[str]:
    """What a person types for a config of the toys."""
    model = dataclasses.asdict(config.model)
    network = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head")
    options = {
        f"model.{name}": model[name] for name in (*network, "d_ff", "max_length")
    }
    options |= {f"data.{name}": x for name, x in vars(config.data).items() if x}
    same = ("run_dir", "batch_size", "epochs", "devices", "log_every", "save_every")
    options |= {name: getattr(config, name) for name in same}
    typed = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "experiments.sft", *typed, *changes]


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of the runs of this file."""

    one: Path  # run directory of one process with all devices
    two: Path  # of two processes, uninterrupted
    hit: Path  # of two processes, of which first one was killed, then one stopped
    pairs: dict[str, Pair]
    seconds: dict[str, float]


def pair_of(folder: Path, config: sft.Config, *changes: str, **inside) -> Pair:
    """Two processes with two devices each; the second one with changes."""
    commands = [command(config), command(config, *changes)]
    return start_pair(folder, commands, heartbeat_s=HEARTBEAT_S, devices=2, **inside)


def write_rows(folder: Path, texts: str) -> Path:
    """demonstrations.jsonl with a row for each letter, on a disk of one's own."""
    folder.mkdir()
    rows = [{"prompt": "Say it", "completion": f" {text}."} for text in texts]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "demonstrations.jsonl").write_text(lines)
    return folder


def steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(read_metrics(path)) if path.exists() else 0


@pytest.fixture(scope="module")
def ran(toys, tmp_path_factory):
    """All at the same time, where one does not need the other."""
    root = tmp_path_factory.mktemp("processes")
    options = {"epochs": UPDATES // 2, "devices": 4, "save_every": 10}
    config = lambda name: toys.sft(root / name, **options)
    pairs, seconds = {}, {}
    try:
        pairs["hit"] = hit = pair_of(root / "p0", config("hit"))
        pairs["two"] = pair_of(root / "p1", config("two"))
        for name, process, number, at in (
            ("killed", 1, signal.SIGKILL, 15),
            ("stopped", 0, signal.SIGSTOP, 35),
            ("asked", 1, signal.SIGTERM, 45),
        ):
            folder = root / f"{name}"
            pairs[name] = hit
            wait_until(lambda at=at: steps(root / "hit") >= at, hit)
            hit.send(process, number)
            since = time.monotonic()
            hit.wait(1 - process)
            seconds[name] = time.monotonic() - since
            if name == "asked":
                hit.wait(process)
            hit.kill()
            again = command(config("hit"), "--resume")
            hit = start_pair(folder, [again] * 2, heartbeat_s=HEARTBEAT_S, devices=2)
            pairs["resumed"] = hit
        sft.main(config("one"))
        for name in ("two", "resumed"):
            for process in range(2):
                pairs[name].wait(process)
    finally:
        for pair in pairs.values():
            pair.kill()
    return Ran(root / "one", root / "two", root / "hit", pairs, seconds)


def test_two_processes_train_as_one(ran):
    assert ran.pairs["two"].codes() == [0, 0]
    one, two = (read_metrics(folder / "metrics.jsonl") for folder in (ran.one, ran.two))
    assert len(one) == len(two) == UPDATES
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-6, err_msg=name)
    assert one[-1]["sft/loss"] < one[0]["sft/loss"] - 0.1


def test_one_of_them_writes_and_speaks(ran):
    pair = ran.pairs["two"]
    assert "trained parameters" in pair.output(0)
    assert "trained parameters" not in pair.output(1)
    files = lambda run_dir: {path.name for path in run_dir.iterdir()}
    assert files(ran.two) == files(ran.one) | {"provenance.json"}
    config = json.loads((ran.two / "config.json").read_text())
    assert config["devices"] == 4


@pytest.mark.fault(28)
@pytest.mark.parametrize("name, process", [("killed", 1), ("stopped", 0)])
def test_the_other_ends_and_names_it(ran, name, process):
    pair = ran.pairs[name]
    assert pair.code(1 - process) == 75
    assert ran.seconds[name] < HEARTBEAT_S + 10
    who = f"process {process} ({socket.gethostname()}, pid {pair.pid(process)}) at step"
    line = pair.last(1 - process)
    assert line.startswith(f"error: {who}") and "--resume" in line
    assert (ran.hit / f"stacks.{1 - process}.txt").stat().st_size > 0


@pytest.mark.fault(4)
def test_one_is_asked_to_stop_and_both_do(ran):
    """At the same step, which is saved."""
    pair = ran.pairs["asked"]
    assert pair.codes() == [75, 75]
    assert ran.seconds["asked"] < 10
    said = "stopped by SIGTERM, saved at "
    places = [pair.error(p).partition(said)[2].split("/")[0] for p in range(2)]
    assert places[0] == places[1] and 45 < int(places[0]) < UPDATES


@pytest.mark.fault(28)
def test_both_resumed_go_on_as_if_nothing_had_been(ran):
    assert ran.pairs["resumed"].codes() == [0, 0]
    read = lambda run_dir: (run_dir / "metrics.jsonl").read_bytes()
    assert read(ran.hit) == read(ran.two)


@pytest.fixture(scope="module")
def differing(toys, tmp_path_factory):
    """Two processes of other options, and two with other files of the same name."""
    root = tmp_path_factory.mktemp("differing")
    config = lambda name: toys.sft(root / name, devices=4)
    own = config("data")
    data = dataclasses.replace(own.data, path="demonstrations.jsonl", eval_path=None)
    own = dataclasses.replace(own, data=data)
    disks = write_rows(root / "a", "abcdefghij"), write_rows(root / "b", "abcdeghijk")
    asked = "--seed=1", "--optim.learning-rate=0.5"
    pairs = {}
    try:
        pairs["options"] = pair_of(root / "p0", config("options"), *asked)
        pairs["data"] = pair_of(root / "p1", own, inside=disks)
        for pair in pairs.values():
            assert [pair.wait(process) for process in range(2)] == [2, 2]
    finally:
        for pair in pairs.values():
            pair.kill()
    return pairs


@pytest.mark.fault(29)
def test_other_options_are_named_before_anything_is_computed(differing):
    pair = differing["options"]
    for process in range(2):
        assert pair.seconds_together(process) < 60
        line = pair.last(process)
        assert "seed: process 0 has 0, process 1 has 1" in line
        assert "optim.learning_rate: process 0 has 0.003, process 1 has 0.5" in line
    assert not (pair.folder.parent / "options").exists()


@pytest.mark.fault(29)
def test_other_data_are_named(differing):
    pair = differing["data"]
    for process in range(2):
        assert pair.seconds_together(process) < 60
        assert "differ in data: process 0 has " in pair.last(process)


@pytest.mark.parametrize("stage", ["reward", "preference", "ppo", "grpo"])
def test_later_stages_in_two_processes_train_as_in_one(stages, stage):
    one, two = (read_metrics(root / stage / "metrics.jsonl") for root in stages)
    assert len(one) == len(two) >= 2
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                b[name], a[name], rtol=1e-5, atol=1e-6, err_msg=name
            )


@pytest.fixture(scope="module")
def stages(toys, tmp_path_factory):
    """Where the later stages of one process lie, and those of two."""
    root = tmp_path_factory.mktemp("stages")
    script = Path(__file__).parent.parent / "later_stages.py"
    command = [sys.executable, script, toys.root, root / "two"]
    given: Any = {"heartbeat_s": HEARTBEAT_S, "devices": 1}
    pair = start_pair(root / "output", [command] * 2, **given)
    try:
        run_stages(toys, root / "one")
        for process in range(2):
            assert pair.wait(process) == 0, pair.error(process)
    finally:
        pair.kill()
    return root / "one", root / "two"
