"""What one decoding step reads on a TPU, by the compiler's own count; no TPU is needed.

  pip install '.[tpu]'
  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tpu.decode

A step has to read every weight and the whole cache once. The compiler for one v5e chip
says what the compiled step reads and writes, how much memory it plans beside its
arguments, and whether the cache is updated where it is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import cli
from rlhf_jax.models import (
    CacheDType,
    CausalLM,
    KVCache,
    TransformerConfig,
    init_params,
    policy_apply,
)
from rlhf_jax.terminal import print_table
from rlhf_jax.types import Params, TokenBatch

# The shape of Llama 3.2 1B.
MODEL = TransformerConfig(
    vocab_size=128_256,
    d_model=2_048,
    n_layers=16,
    n_heads=32,
    n_kv_heads=8,
    d_head=64,
    d_ff=8_192,
    max_length=131_072,
    tie_embeddings=True,
    dtype="bfloat16",
    param_dtype="bfloat16",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A decoding step of a model of 1.2 billion parameters on one v5e chip."""

    batch: int = 64
    """Rows."""
    context: int = 2_048
    """Columns of the cache, all of them read."""
    cache_dtype: CacheDType | None = None
    """Of keys and values; none for the model's bfloat16."""


def compile_step(model: TransformerConfig, batch: int, context: int) -> tuple[Any, Any]:
    """(compiled greedy step with the cache donated, shapes of its arguments)."""
    apply_fn = policy_apply(model)

    def step(params: Params, column: TokenBatch, cache: KVCache):
        output = apply_fn(params, column, cache=cache)
        return jnp.argmax(output.logits[:, 0], axis=-1), output.cache

    def arguments():
        token = jnp.ones((batch, 1), jnp.int32)
        params = init_params(CausalLM(model), key=jax.random.key(0))
        column = TokenBatch(token, token, token, token > 0)
        return params, column, KVCache.empty(model, batch, context)

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)
    )
    mesh = Mesh(np.array(topology.devices), ("chip",))
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    shapes = jax.tree.map(place, jax.eval_shape(arguments))
    return jax.jit(step, donate_argnums=2).lower(*shapes).compile(), shapes


def traffic(compiled: Any, shapes: Any) -> dict[str, float]:
    """Bytes of a step: those it needs, those it reads and writes, those it plans."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    params, _, cache = (
        float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))
        for tree in shapes
    )
    written = sum(v for k, v in cost.items() if k.startswith("bytes accessedout"))
    return {
        "weights": params,
        "cache": cache,
        "read": cost["bytes accessed"] - written,
        "written": written,
        "memory beside arguments": float(memory.temp_size_in_bytes),
        "cache updated in place": float(memory.alias_size_in_bytes),
    }


def main(config: Config) -> dict[str, float]:
    """Compiles, prints the table, returns its numbers."""
    model = dataclasses.replace(MODEL, cache_dtype=config.cache_dtype)
    found = traffic(*compile_step(model, config.batch, config.context))
    print_table(
        f"One step, {config.batch} rows, context {config.context}, one v5e chip",
        ["", "GB"],
        [[name, value / 1e9] for name, value in found.items()],
    )
    needed = found["weights"] + found["cache"]
    print(f"read / (weights + cache) = {found['read'] / needed:.3f}")
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
