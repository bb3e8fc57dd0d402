"""A step of fine-tuning over TPU chips, by the compiler's own plan; no TPU is needed.

  pip install '.[tpu]'
  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tpu.train --fsdp 4 --tensor 2

The weights and their optimiser state lie in parts on eight v5e chips of 16 GB
(`rlhf_jax.sharding`). The compiler says what a chip holds, and where chips communicate.
"""

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from experiments import cli
from rlhf_jax.models import CausalLM, init_params, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.sharding import DATA, FSDP, make_mesh, state_shardings
from rlhf_jax.steps import create_state, sft_step
from rlhf_jax.terminal import print_table
from rlhf_jax.types import TokenBatch
from tpu.decode import MODEL as DECODED

MODEL = dataclasses.replace(
    DECODED, param_dtype="float32", remat=True, max_length=2_048
)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Config:
    """An update of 1.2 billion parameters, float32 masters, on eight v5e chips."""

    fsdp: int = 8
    """Parts of every weight and of its optimiser state."""
    tensor: int = 1
    """Parts of heads, of the MLP's width and of the vocabulary."""
    rows: int = 16
    """Rows of 2,048 tokens, all chips together."""


def compile_update(config: Config) -> Any:
    """The compiled update, its state donated."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = make_mesh(topology.devices, fsdp=config.fsdp, tensor=config.tensor)
    tx = make_optimizer(OptimConfig(learning_rate=1e-5, schedule="constant"), 1)
    init = lambda key: create_state(
        policy_apply(MODEL), init_params(CausalLM(MODEL), key=key), tx
    )
    state = jax.eval_shape(init, jax.random.key(0))
    where = state_shardings(state, mesh)
    shape = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    state = jax.tree.map(shape, state, where)
    cut = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))
    tokens = (config.rows, MODEL.max_length)
    ids: Any = jax.ShapeDtypeStruct(tokens, jnp.int32, sharding=cut)
    mask: Any = jax.ShapeDtypeStruct(tokens, jnp.bool_, sharding=cut)
    step = jax.jit(sft_step, out_shardings=(where, None), donate_argnums=0)
    return step.lower(state, TokenBatch(ids, ids, ids, mask)).compile()


def main(config: Config) -> dict[str, float]:
    """Compiles, prints the table, returns its numbers."""
    compiled = compile_update(config)
    memory = compiled.memory_analysis()
    found = {
        "state, GB a chip": memory.argument_size_in_bytes / 1e9,
        "beside it, GB a chip": memory.temp_size_in_bytes / 1e9,
        "reused for the new state, GB": memory.alias_size_in_bytes / 1e9,
    }
    calls = collections.Counter(
        re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text())
    )
    found |= {f"{name}, places in the program": calls[name] for name in COLLECTIVES}
    print_table(
        f"{config.rows} rows of {MODEL.max_length:,} tokens, fsdp {config.fsdp}, "
        f"tensor {config.tensor}, on eight v5e chips",
        ["", ""],
        [[name, value] for name, value in found.items()],
    )
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
