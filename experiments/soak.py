"""PPO for a long time: memory, CPU time an iteration and compilations stay as they are.

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
    began, seen = time.time(), []
    timings = run_dir / "ppo/timings.jsonl"

    def watch() -> None:
        while time.time() < began + 60 * config.minutes:
            made = timings.read_bytes().count(b"\n") if timings.exists() else 0
            seen.append((time.time(), resident(), time.process_time(), made))
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
    watched = np.array(seen), np.array(compiled)
    draw(run_dir / "soak.png", began, config.minutes, *watched)
    return summary(began, config, *watched)


def summary(began: float, config: Config, seen: Any, compiled: Any) -> dict[str, float]:
    """Prints what changed after the warm-up."""
    after = began + 60 * config.warmup
    part, minute = seen[seen[:, 0] > after], round(60 / WATCH_S)
    resided, quarter = part[:, 1], len(part) // 4
    found = {
        "iterations": seen[-1, 3],
        "checkpoints": seen[-1, 3] // SAVE_EVERY,
        "resident memory, MB, median": np.median(resided),
        "the same, least, % of the median": 100 * min(resided) / np.median(resided),
        "the same, most, % of the median": 100 * max(resided) / np.median(resided),
        "the same, MB, first minute": resided[:minute].mean(),
        "the same, MB, last minute": resided[-minute:].mean(),
        "CPU ms an iteration, first quarter": cpu_ms(part[: quarter + 1]),
        "CPU ms an iteration, last quarter": cpu_ms(part[-quarter - 1 :]),
        "compilations": sum(compiled > began),
        f"compilations after {config.warmup:g} minutes": sum(compiled > after),
    }
    found = {name: float(value) for name, value in found.items()}
    print_table(f"{config.minutes:g} minutes of PPO", ["", "found"], [*found.items()])
    return found


def cpu_ms(seen: Any) -> float:
    """CPU time an iteration of all cores: what else the machine does changes little."""
    return 1e3 * (seen[-1, 2] - seen[0, 2]) / (seen[-1, 3] - seen[0, 3])


def draw(path: Path, began: float, minutes: float, seen: Any, compiled: Any) -> None:
    """Memory and CPU time an iteration over time, and when something was compiled."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 4.5))
    middle, when = np.median(seen[len(seen) // 2 :, 1]), (seen[:, 0] - began) / 60
    above.axhspan(0.98 * middle, 1.02 * middle, color="tab:green", alpha=0.2)
    above.plot(when, seen[:, 1])
    above.set_ylabel("resident memory, MB")
    above.set_title("green: ± 2 %; grey lines: compilations", fontsize=10)
    first = int(np.argmax(seen[:, 3] > 0))
    parts = np.array_split(np.arange(first, len(seen)), max(1, 2 * round(minutes)))
    parts = [p for p in parts if len(p) > 1 and np.ptp(seen[p, 3])]
    below.plot([when[p].mean() for p in parts], [cpu_ms(seen[p]) for p in parts])
    below.set_ylabel("CPU ms an iteration")
    below.set_xlabel("minutes of PPO")
    below.set_ylim(0)
    for axes in (above, below):
        for instant in compiled[compiled > began]:
            axes.axvline((instant - began) / 60, color="grey", lw=0.5)
        axes.set_xlim(0, minutes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
