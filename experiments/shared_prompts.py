"""Prompts that are answered several times: what it saves to read each of them once."""

import statistics

import jax
import numpy as np

from experiments import benchmark_inputs as inputs
from experiments.timing import Workload, alternate
from rlhf_jax.models import (
    CausalLM,
    TransformerConfig,
    decode_layout,
    init_params,
    policy_apply,
)
from rlhf_jax.sampling.prefill import prefill

PROMPTS, COMPLETIONS, LENGTH = 2, 8, 512


def sharing(model: TransformerConfig, *, new: int, reps: int) -> float:
    """How much longer prompts take to read if each completion reads its own.

    Args:
      model: with random weights.
      new: tokens of a completion that the cache has columns for.
      reps: timed iterations.
    """
    apply_fn = policy_apply(model)
    params = decode_layout(init_params(CausalLM(model), key=jax.random.key(0)))
    few = next(inputs.prompts(model, PROMPTS, LENGTH))
    many = jax.tree.map(lambda x: np.repeat(x, COMPLETIONS, axis=0), few)
    columns = LENGTH + new

    @jax.jit
    def shared(prompts):
        cache = prefill(apply_fn, params, prompts, columns=None, chunk=None)
        return cache.share(COMPLETIONS, new + 1)

    @jax.jit
    def apart(prompts):
        return prefill(apply_fn, params, prompts, columns=columns, chunk=None)

    timed = [
        Workload(lambda f=f, x=x: jax.block_until_ready(f(x)), 1, "")
        for f, x in ((shared, few), (apart, many))
    ]
    once, each = map(statistics.median, alternate(timed, warmup=2, reps=reps))
    return each / once
