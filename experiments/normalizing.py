"""A reward model's scores, made mean 0 and deviation 1 on samples of a policy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf_jax.data import left_padded
from rlhf_jax.models import policy_apply
from rlhf_jax.parallel import (
    Where,
    data_parallel,
    on_one_device,
    replicate,
    shard,
    unshard,
)
from rlhf_jax.rewards import normalize_scores, sequence_scores
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.stages import Stage, pad_id
from rlhf_jax.steps import TrainState
from rlhf_jax.types import Params, TokenBatch, join_params


def sample_policy(
    policy: Stage | None,
    examples: list[Any],
    length: int,
    devices: Where,
    *,
    count: int,
    seed: int,
) -> TokenBatch:
    """Responses of the policy to the prompts of the first examples."""
    assert policy is not None  # the config refuses normalize without --policy
    prompts = [e.prompt for e in examples[:count]]
    width = max(map(len, prompts))
    config = SamplingConfig(max_new_tokens=length - width, stop_ids=policy.stop_ids)
    sample = functools.partial(generate, policy_apply(policy.model), config=config)
    batch = left_padded(prompts, length=width, pad_id=pad_id(policy.tokenizer))
    params = policy.params
    if isinstance(devices, Mesh):
        params = replicate(params, devices)
    return aside(sample, devices)(params, batch, key=jax.random.key(seed)).batch


def normalize_reward(
    state: TrainState, frozen: Params | None, samples: TokenBatch, devices: Where
) -> TrainState:
    """The reward model, on its devices, with mean 0 and std 1 on these samples."""
    score = aside(functools.partial(sequence_scores, state.apply_fn), devices)
    scores = score(join_params(frozen, state.params), samples)
    head = on_one_device({"score_head": state.params["score_head"]})
    head = replicate(normalize_scores(head, scores[:, 0]), devices)
    return state.replace(params=state.params | head)


def aside(call: Callable, devices: Where) -> Callable:
    """``call(parameters, batch)`` for once: on one device, or on all of a mesh.

    On a mesh the parameters lie there in parts; elsewhere one device has them all.
    """
    if not isinstance(devices, Mesh):
        alone = jax.jit(call)
        return lambda params, *given, **keys: alone(
            on_one_device(params), *given, **keys
        )
    step = lambda *trees, axis_name, **keys: call(*trees, **keys)
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=0)
    return lambda params, batch, **keys: unshard(
        mapped(params, shard(batch, devices), **keys)
    )
