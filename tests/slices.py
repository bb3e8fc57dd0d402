"""Slices that are folders: tpu/vm.sh with a stand-in for gcloud."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "tpu"
ROOT = HERE.parents[1]
MACHINE = (
    "hostname sudo mountpoint mount lsblk blkid mkfs.ext4 chown apt-get python3 uv"
)
SETTINGS = {
    "RLHF_TPU_NAME": "grpo-1",
    "RLHF_TPU_ZONE": "us-west4-a",
    "RLHF_TPU_TYPE": "v5litepod-16",
    "RLHF_TPU_NFS": "10.0.0.2:/runs",
    "RLHF_TPU_POLL": "0.2",
    "RLHF_TPU_BACKOFF": "0.05",
    "RLHF_TPU_TRIES": "4",
    "RLHF_TPU_ATTEMPTS": "3",
}


@dataclasses.dataclass(frozen=True)
class Slices:
    """A checkout, a share that outlives slices, and what gcloud was asked."""

    root: Path
    tree: Path

    @property
    def share(self) -> Path:
        return self.root / "share"

    @property
    def run_dir(self) -> Path:
        return self.share / "run"

    def environment(self, **more: str) -> dict[str, str]:
        plain = {k: v for k, v in os.environ.items() if not k.startswith("RLHF_")}
        own = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "STANDIN": str(self.root),
            "STANDIN_PYTHON": sys.executable,
            "TMPDIR": str(self.root),
            "RLHF_TPU_MOUNT": str(self.share),
        }
        return plain | SETTINGS | own | more

    def vm(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.tree / "tpu" / "vm.sh", *map(str, arguments)],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def babysit(self, plan: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        toy = ["python", "standin_run.py", "--run-dir", self.run_dir, "--plan", plan]
        return self.vm("babysit", "--then-delete", "--", *toy, **more)

    def state(self) -> dict[str, Any]:
        return json.loads((self.root / "state.json").read_text())

    def asked(self) -> list[str]:
        """What gcloud was asked to do, looks left out."""
        lines = (self.root / "calls.jsonl").read_text().splitlines()
        calls = [json.loads(line) for line in lines]
        return [call[3] for call in calls if call[3] != "describe"]

    def steps(self) -> list[int]:
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    def runs(self, worker: int = 0) -> int:
        return len((self.run_dir / f"runs-of-worker-{worker}").read_text())


def checkout(tree: Path, *what: Path) -> Path:
    """A git checkout of scripts and files."""
    (tree / "tpu").mkdir(parents=True)
    for script in (ROOT / "tpu").glob("*.sh"):
        shutil.copy(script, tree / "tpu")
    for path in (ROOT / "pyproject.toml", *what):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tree / path.name)
    subprocess.run(["git", "init", "--quiet", tree], check=True)
    return tree


def make_slices(root: Path, tree: Path, *, workers: int = 2, **scenario: Any) -> Slices:
    """Slices of a checkout, and the scenario for them: see tpu/standin_gcloud.py."""
    (root / "share").mkdir()
    (root / "machine").mkdir()
    for name in MACHINE.split():
        (root / "machine" / name).symlink_to(HERE / "standin_machine.sh")
    gcloud = root / "bin" / "gcloud"
    gcloud.parent.mkdir()
    program = HERE / "standin_gcloud.py"
    gcloud.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{program}" "$@"\n')
    gcloud.chmod(0o755)
    told = {"queue": ["ACTIVE"], "fail": {}, "taken": []} | scenario
    now = {"slices": 0, "queue_now": [], "node": "ABSENT", "silent": False}
    (root / "state.json").write_text(json.dumps(now | told | {"workers": workers}))
    return Slices(root, tree)
