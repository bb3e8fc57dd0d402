"""A real experiment under babysit: its slice is taken away, and nothing is lost."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from slices import ROOT, Slices, checkout, make_slices

UPDATES, SAVE_EVERY = 240, 20
NETWORK = "vocab-size=270 d-model=8 n-layers=1 n-heads=1 n-kv-heads=1 d-head=8 d-ff=16"


def experiment(run_dir: Path, rows: Path) -> list[str]:
    """Fine-tuning of a toy, two rows an update."""
    options = {"run-dir": run_dir, "data.path": rows, "data.eval-path": rows}
    options |= {"batch-size": 2, "epochs": UPDATES // 4, "devices": 1}
    options |= {"log-every": 10, "save-every": SAVE_EVERY, "eval-every": UPDATES}
    typed = [f"--{name}={value}" for name, value in options.items()]
    network = [f"--model.{option}" for option in f"{NETWORK} max-length=64".split()]
    return ["-m", "experiments.sft", *typed, *network]


def take_away_in_mid_run(slices: Slices) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        if (slices.run_dir / "checkpoints" / str(2 * SAVE_EVERY)).exists():
            (slices.root / "holds").write_text("seen")
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_the_metrics_are_those_of_an_unbroken_run(tmp_path: Path):
    packages = (ROOT / "rlhf_jax", ROOT / "experiments", ROOT / ".gitignore")
    tree = checkout(tmp_path / "tree", *packages)
    slices = make_slices(tmp_path, tree, workers=1, taken=["preempted"])
    rows = slices.share / "rows.jsonl"
    lines = [{"prompt": "Say it", "completion": f" {text}."} for text in "abcdefgh"]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "RLHF_TPU_TYPE": "v5litepod-1"}
    own["RLHF_TPU_POLL"] = "0.4"
    said = tmp_path / "whole.log"
    with said.open("w") as file:
        whole = subprocess.Popen(
            [sys.executable, *experiment(tmp_path / "whole", rows)],
            cwd=tree,
            env=slices.environment(**own),
            stdout=file,
            stderr=file,
        )
    threading.Thread(target=take_away_in_mid_run, args=[slices], daemon=True).start()
    done = slices.vm(
        "babysit", "--", "python", *experiment(slices.run_dir, rows), **own
    )
    assert done.returncode == 0, done.stderr
    assert whole.wait(200) == 0, said.read_text()
    assert slices.state()["slices"] == 2
    assert "grpo-1 is lost: SUSPENDING" in done.stderr
    began = (slices.root / "slice-2" / "0" / "run" / "pid").stat().st_mtime
    text = (slices.run_dir / "timings.jsonl").read_text()
    times = [json.loads(line)["unix_s"] for line in text.splitlines()]
    before = [unix_s for unix_s in times if unix_s < began]
    assert 2 * SAVE_EVERY // 10 <= len(before) < len(times)  # it did not begin anew
    metrics = (slices.run_dir / "metrics.jsonl").read_bytes()
    assert metrics == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert json.loads(metrics.splitlines()[-1])["step"] == UPDATES
