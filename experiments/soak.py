"""PPO for a long time: memory, seconds an iteration and compilations stay as they are.

  python -m experiments.soak --minutes 30

Quickstart's stages at a small scale, then PPO with a checkpoint every 50 iterations,
until the minutes are over. Measured: see docs/faults.md.
"""

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

from experiments import cli, policy, quickstart
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.terminal import print_table
from rlhf_jax.tracking import read_metrics

COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax calls the event
SAVE_EVERY = 50
WATCH_S = 5.0  # between two looks at the memory


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, and where."""

    run_dir: Path = Path("runs/soak")
    """Where the stages, the table's numbers and the picture go."""
    minutes: float = 30
    """Minutes of PPO."""
    warmup: float = 2
    """Minutes at its beginning that are not compared."""
    batch_size: int = 16
    """Episodes an iteration."""

    def __post_init__(self):
        if not 0 < self.warmup < self.minutes:
            raise UserError(
                f"warmup = {self.warmup}: expected more than 0 and less than "
                f"minutes = {self.minutes}"
            )


def resident() -> float:
    """MB of this process that are in memory; Linux alone says."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(config: Config) -> dict[str, float]:
    """Trains, and returns the table's numbers."""
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    compiled: list[float] = []

    def note(event: str, *_: Any, **__: Any) -> None:
        if event == COMPILED:
            compiled.append(time.time())

    jax.monitoring.register_event_duration_secs_listener(note)
    stages = run_dir / "stages"
    quickstart.main(quickstart.Config(stages, scale=0.02, devices=1, until="reward"))
    began, memory = time.time(), []

    def watch() -> None:
        while time.time() < began + 60 * config.minutes:
            memory.append((time.time(), resident()))
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)  # PPO saves and stops

    threading.Thread(target=watch, daemon=True).start()
    endless = policy.Config(
        run_dir / "ppo",
        policy=stages / "sft",
        reward=str(stages / "reward"),
        data=dataclasses.replace(policy.Config().data, data_dir=stages / "data"),
        episodes=config.batch_size * 10**6,
        batch_size=config.batch_size,
        eval_samples=config.batch_size,
        devices=1,
        save_every=SAVE_EVERY,
    )
    try:
        policy.main(endless)
    except SystemExit as stopped:
        print(f"stopped with exit code {stopped.code}")
    timings = read_metrics(run_dir / "ppo/timings.jsonl")
    ended = np.array([row["unix_s"] for row in timings])
    watched = np.array(memory), ended, np.array(compiled)
    draw(run_dir / "soak.png", began, config.minutes, *watched)
    return summary(began, config, *watched)


def summary(
    began: float, config: Config, memory: Any, ended: Any, compiled: Any
) -> dict[str, float]:
    """Prints what changed after the warm-up."""
    after = began + 60 * config.warmup
    resided = memory[memory[:, 0] > after, 1]
    step_ms = np.diff(ended)[ended[1:] > after] * 1e3
    part, minute = len(step_ms) // 4, round(60 / WATCH_S)
    found = {
        "iterations": len(ended),
        "checkpoints": len(ended) // SAVE_EVERY,
        "resident memory, MB, median": np.median(resided),
        "the same, least, % of the median": 100 * min(resided) / np.median(resided),
        "the same, most, % of the median": 100 * max(resided) / np.median(resided),
        "the same, MB, first minute": resided[:minute].mean(),
        "the same, MB, last minute": resided[-minute:].mean(),
        "ms an iteration, first quarter, median": np.median(step_ms[:part]),
        "ms an iteration, last quarter, median": np.median(step_ms[-part:]),
        "compilations": sum(compiled > began),
        f"compilations after {config.warmup:g} minutes": sum(compiled > after),
    }
    found = {name: float(value) for name, value in found.items()}
    print_table(f"{config.minutes:g} minutes of PPO", ["", "found"], [*found.items()])
    return found


def draw(
    path: Path, began: float, minutes: float, memory: Any, ended: Any, compiled: Any
) -> None:
    """Memory and seconds an iteration over time, and when something was compiled."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 4.5))
    middle = np.median(memory[len(memory) // 2 :, 1])
    above.axhspan(0.98 * middle, 1.02 * middle, color="tab:green", alpha=0.2)
    above.plot((memory[:, 0] - began) / 60, memory[:, 1])
    above.set_ylabel("resident memory, MB")
    above.set_title("green: ± 2 %; grey lines: compilations", fontsize=10)
    below.plot((ended[1:] - began) / 60, np.diff(ended) * 1e3, ",", alpha=0.4)
    below.set_ylabel("ms an iteration")
    below.set_xlabel("minutes of PPO")
    below.set_ylim(0, 3 * np.median(np.diff(ended)) * 1e3)
    for axes in (above, below):
        for when in compiled[compiled > began]:
            axes.axvline((when - began) / 60, color="grey", lw=0.5)
        axes.set_xlim(0, minutes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
