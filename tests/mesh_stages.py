"""Stages whose models lie in parts on four devices, in one process or in two.

experiments/test_mesh.py starts it: python mesh_stages.py ROOT RESULTS
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from stage_toys import Toys

from experiments import cli, policy, sft
from experiments.runs import MeshConfig, RunConfig
from rlhf_jax import processes

PARTS: Any = {"devices": 4, "mesh": MeshConfig(fsdp=2, tensor=2)}


def run_stages(toys: Toys, results: Path) -> None:
    """SFT, stopped after its first update and resumed, and PPO with a critic."""
    sft.main(toys.sft(results / "sft", **PARTS))
    processes.by_first(lambda: forget_last(results / "sft", results / "resumed"))
    sft.main(toys.sft(results / "resumed", resume=True, **PARTS))
    policy.main(toys.policy(results / "ppo", **PARTS))


def forget_last(run_dir: Path, copy: Path) -> None:
    """A run as it was before its second update."""
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns(".lock"))
    shutil.rmtree(copy / "checkpoints/2")


if __name__ == "__main__":
    root, folder = map(Path, sys.argv[1:])
    sys.argv[1:] = []
    given: Any = {"default": RunConfig(folder)}
    run = lambda config: run_stages(Toys(root), folder)
    cli.run(run, given, description="", several=True)
