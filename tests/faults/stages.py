"""Stages at toy size in processes of their own, to be killed and started again."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from stage_toys import Toys

from experiments import cli, policy, preference, reward_model, sft
from rlhf_jax import checkpoint

MAINS = {
    "sft": sft.main,
    "reward": reward_model.main,
    "dpo": preference.main,
    "ppo": policy.main,
    "grpo": policy.main,
}
UPDATES = 12
SAVE_EVERY = 3


def config(toys: Toys, stage: str, run_dir: Path, **changes: Any) -> Any:
    """12 updates, or as many iterations, and a checkpoint after each third."""
    changes = {"save_every": SAVE_EVERY, **changes}
    if stage == "sft":
        changes |= {"epochs": UPDATES // 2, "micro_batches": 2}
        return toys.sft(run_dir, **changes)
    if stage == "reward":
        changes |= {"epochs": UPDATES // 3}
        return toys.reward(run_dir, **changes)
    if stage == "dpo":
        changes |= {"epochs": UPDATES // 2}
        return toys.preference(run_dir, **changes)
    changes |= {"episodes": UPDATES * 8}
    return toys.policy(run_dir, stage, **changes)


class Script:
    """A stage in a process of its own, as its script would run it."""

    def __init__(self, context: Any, root: Path, stage: str, run_dir: Path, **changes):
        given = str(root), stage, str(run_dir), changes
        self.process = context.Process(target=_run, args=given)
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; minus the signal's number, if one ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {seconds} s")
        return self.process.exitcode

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


def context() -> Any:
    """Starts processes that have imported everything and computed nothing."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([__name__])
    return found


def _run(root: str, stage: str, run_dir: str, changes: dict[str, Any]) -> None:
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    with (Path(run_dir).parent / f"{Path(run_dir).name}.txt").open("a") as shown:
        for stream in (sys.stdout, sys.stderr):  # in whole, killed or not
            os.dup2(shown.fileno(), stream.fileno())
        sys.argv = [stage]
        jax.config.update("jax_compilation_cache_dir", f"{root}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        made = config(Toys(Path(root)), stage, Path(run_dir), **changes)
        cli.run(MAINS[stage], {"toy": made}, description="")


def steps_logged(run_dir: Path) -> int:
    """The last step with a line of metrics; 0 for none."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().split("\n")
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0
    except (FileNotFoundError, ValueError):
        return 0


def wait_for_step(script: Script, run_dir: Path, step: int) -> None:
    """Until a step is logged, or the script has ended."""
    while script.process.is_alive() and steps_logged(run_dir) < step:
        time.sleep(0.001)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a run leaves and must not depend on whether it was stopped."""

    leaves: dict[str, bytes]
    host_state: dict[str, Any]
    step: int
    metrics: str


def outcome(run_dir: Path) -> Outcome:
    directory = run_dir / "checkpoints"
    step = checkpoint.latest_step(directory)
    assert step is not None
    manifest = checkpoint.verify(directory, step)
    tops = {name.split("/")[0] for name in manifest.leaves}
    leaves = {}
    for top in sorted(tops):
        if top in manifest.leaves:
            continue  # a leaf by itself, such as the step
        part = checkpoint.restore_params(directory, top)
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            leaves[f"{top}{jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
    metrics = (run_dir / "metrics.jsonl").read_text()
    return Outcome(leaves, manifest.host_state, step, metrics)


def leftovers(run_dir: Path) -> list[str]:
    """What is in a run directory that a finished run has no use for."""
    half = (".saving-", ".deleting-", ".metrics", ".timings", ".config", ".model")
    found = [p.name for p in run_dir.rglob("*") if p.name.startswith(half)]
    return [*found, *(p.name for p in run_dir.rglob("*orbax-checkpoint-tmp*"))]
