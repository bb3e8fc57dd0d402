"""One of several processes of an update over a mesh; tests/test_processes.py starts it.

python process.py ADDRESS PROCESSES INDEX RESULT.npz
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from steps.batches import task

from rlhf_jax.sharding import make_mesh, mesh_parallel, place_batch, place_state

KINDS = ("sft", "ppo")


def main(address: str, processes: str, index: str, result: str) -> None:
    count, here = int(processes), int(index)
    jax.config.update("jax_num_cpu_devices", 4 // count)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, here)
    found = {kind: update(kind, count, here) for kind in KINDS}
    if here == 0:
        named = jax.tree_util.tree_leaves_with_path(found)
        np.savez(result, **{jax.tree_util.keystr(path): x for path, x in named})


def update(kind: str, count: int, here: int) -> Any:
    """(change of the parameters, metrics) by this process's part of the rows."""
    step, state, batch = task(kind, table=False)
    own = jax.tree.map(lambda x: np.split(np.asarray(x), count)[here], batch)
    mesh = make_mesh(jax.devices(), fsdp=2)
    after, metrics = mesh_parallel(step)(
        place_state(state, mesh), place_batch(own, mesh)
    )
    params = multihost_utils.process_allgather(after.params, tiled=True)
    change = jax.tree.map(np.subtract, params, jax.device_get(state.params))
    return change, metrics.compute()


if __name__ == "__main__":
    main(*sys.argv[1:])
