"""PPO for a long time: memory, seconds an iteration and compilations stay as they are.

python tests/faults/soak.py --minutes 30 --picture docs/soak.png
"""

import dataclasses
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import jax
import matplotlib
import tyro
from stage_toys import Toys

from experiments import policy
from rlhf_jax.cpu import prepare_cpu
from rlhf_jax.terminal import print_table
from rlhf_jax.tracking import read_metrics

COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, and where the picture goes."""

    minutes: float = 30
    """Minutes of training."""
    warmup: float = 2
    """Minutes at its beginning that are not compared."""
    picture: Path = Path("soak.png")
    """Memory and seconds an iteration."""


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(config: Config) -> None:
    prepare_cpu()
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(time.time()) if event == COMPILED else 0
    )
    toys = Toys(Path(tempfile.mkdtemp()))
    toys.make()
    run_dir, memory = toys.root / "run", []
    began = time.time()

    def watch() -> None:
        while time.time() < began + 60 * config.minutes:
            memory.append((time.time(), resident()))
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        policy.main(toys.policy(run_dir, episodes=8 * 10**6, save_every=50))
    except SystemExit as stopped:
        print(f"stopped with exit code {stopped.code}")
    ended = [row["unix_s"] for row in read_metrics(run_dir / "timings.jsonl")]
    show(config, began, np.array(memory), np.array(ended), np.array(compiled))


def show(config: Config, began: float, memory: Any, ended: Any, compiled: Any) -> None:
    """The table and the picture."""
    after = began + 60 * config.warmup
    resided = memory[memory[:, 0] > after]
    step_s = np.diff(ended)[ended[1:] > after]
    quarter = len(step_s) // 4
    first, last = np.median(step_s[:quarter]), np.median(step_s[-quarter:])
    middle = np.median(resided[:, 1])
    spread = (resided[:, 1] / middle - 1) * 100
    rows = [
        ("iterations", f"{len(ended):,}", ""),
        ("checkpoints", f"{len(ended) // 50:,}", ""),
        (
            "resident memory, MB",
            f"{middle:,.0f}",
            f"{min(spread):+.2f} % to {max(spread):+.2f} %",
        ),
        (
            "of that, first and last minute, MB",
            f"{resided[:12, 1].mean():,.1f}",
            f"{resided[-12:, 1].mean():,.1f}",
        ),
        (
            "ms an iteration, first and last quarter",
            f"{first * 1e3:.2f}",
            f"{last * 1e3:.2f}",
        ),
        (
            "compilations",
            f"{sum(compiled > began)} in all",
            f"{sum(compiled > after)} after {config.warmup:g} minutes",
        ),
    ]
    print_table(f"{config.minutes:g} minutes of PPO", ["", "", ""], rows)
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 4.5))
    above.plot((memory[:, 0] - began) / 60, memory[:, 1])
    above.axhspan(middle * 0.98, middle * 1.02, alpha=0.15, label="± 2 %")
    above.set_ylabel("resident memory, MB")
    above.legend()
    minutes = (ended[1:] - began) / 60
    edges = np.arange(0, config.minutes + 0.5, 0.5)
    index = np.digitize(minutes, edges)
    middles = [
        np.median(np.diff(ended)[index == i]) * 1e3 if (index == i).any() else np.nan
        for i in range(1, len(edges))
    ]
    below.plot(edges[1:], middles)
    below.set_ylabel("ms an iteration\n(median of half a minute)")
    below.set_ylim(0)
    below.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(config.picture, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
