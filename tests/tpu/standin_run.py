"""A stand-in for an experiment: ends as the scripts do, docs/resuming.md.

The n-th word of --plan says what the n-th run does: ``hold@3`` waits after step 3 for
the slice to be taken away, ``75@3`` ends there with exit code 75. More runs are whole.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--plan", default="")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    run_dir, worker = options.run_dir, os.environ["WORKER"]
    run_dir.mkdir(parents=True, exist_ok=True)
    count = run_dir / f"runs-of-worker-{worker}"
    count.write_text("+" + (count.read_text() if count.exists() else ""))
    number = len(count.read_text())
    ended = run_dir / f"ended-{number}"
    if worker == "0":
        plan = options.plan.split()
        what = plan[number - 1] if number <= len(plan) else "0@-1"
        status = train(run_dir, options.steps, what, options.resume)
        ended.write_text(str(status))
    while not ended.exists():  # as processes of a pod wait for one another
        time.sleep(0.02)
    sys.exit(int(ended.read_text()))


def train(run_dir: Path, steps: int, what: str, resume: bool) -> int:
    """Writes a line and a checkpoint for each step; returns the exit code."""
    checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    last = max([int(path.name) for path in checkpoints.glob("*")], default=0)
    if last and not resume:
        print(f"error: {run_dir}: is there already: --resume", file=sys.stderr)
        return 2
    lines = metrics.read_text().splitlines()[:last] if last else []
    code, _, where = what.partition("@")
    for step in range(last, steps + 1):
        if step > last:
            lines.append(json.dumps({"step": step}))
            metrics.write_text("\n".join(lines) + "\n")
            (checkpoints / str(step)).mkdir(parents=True)
        if step == int(where) and code == "hold":
            (Path(os.environ["STANDIN"]) / "holds").touch()
            while not asked:
                time.sleep(0.02)
        if asked:
            return 75
        if step == int(where):
            print(f"error: --lr -1: expected > 0 (at {step})", file=sys.stderr)
            return int(code)
    return 0


if __name__ == "__main__":
    main()
