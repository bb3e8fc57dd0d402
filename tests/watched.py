"""One of several processes that add up numbers; tests/test_watchdog.py starts it.

python watched.py RUN_DIR [HOW]
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import processes
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
)
from rlhf_jax.watchdog import step_made, watching


def main(run_dir: Path, how: str) -> None:
    if how == "first":
        processes.by_first(no_room)
    devices = local_devices()
    step = data_parallel(total, devices, in_axes=(None, 0), out_axes=None)
    state = replicate(jnp.float32(0), devices)
    for i in range(10 if how == "short" else 100_000):
        state = step(state, shard(np.ones(4, np.float32), devices))
        assert float(state) == 4 * (i + 1)
        step_made(i + 1)
        if i == 5:
            time.sleep(3)  # several beats, so that the others know of a step
            (run_dir / f"{processes.index()}.ready").touch()
        if i == 10 and how == "mend" and processes.index() == 1:
            raise UserError("the number of this process")
        if i == 10 and how == "defect" and processes.index() == 0:
            raise ZeroDivisionError("one over\nnothing")
        if i == 10 and how == "leave" and processes.index() == 1:
            sys.exit(75)
        while i == 10 and how == "stall" and processes.index() == 0:
            time.sleep(1)
        time.sleep(0.05)
    print(f"done: {float(state):g}")


def no_room() -> None:
    raise UserError(f"no room where process {processes.index()} is")


def total(state, batch, *, axis_name):
    return state + jax.lax.psum(batch.sum(), axis_name)


if __name__ == "__main__":
    processes.initialize()
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    with watching(folder, stall_s=3 if kind == "stall" else None):
        main(folder, kind)
