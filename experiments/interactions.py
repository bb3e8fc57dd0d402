"""Responses of a policy and an environment on all devices, and their texts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from rlhf_jax.interaction import Environment, InteractionConfig, interact, spoken
from rlhf_jax.models import decode_layout, policy_apply
from rlhf_jax.parallel import Devices, data_parallel, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import Stage
from rlhf_jax.steps import sample_step
from rlhf_jax.types import Array, Params, Rollout, TokenBatch


class Conversed(NamedTuple):
    """Responses to prompts, with the environment's part in them."""

    rollout: Rollout  # not cut over devices
    prompts: list[str]
    answers: list[str]  # what the policy said last
    called: list[bool]  # the environment has said something


def make_converse(
    policy: Stage,
    sampling: SamplingConfig,
    config: InteractionConfig,
    devices: Devices,
) -> Callable[..., Conversed]:
    """A function ``(params, prompts, environment, *, key, completions)`` → Conversed.

    Each turn runs on every device; the environment runs here. The parameters are those
    on every device.
    """
    apply_fn = policy_apply(policy.model)

    @functools.cache
    def step(sampling: SamplingConfig) -> Callable[..., Rollout]:
        bound = functools.partial(
            sample_step, apply_fn=apply_fn, config=sampling, layout=decode_layout
        )
        return data_parallel(bound, devices, in_axes=(None, 0, 0), out_axes=0)

    def converse(
        params: Params,
        prompts: TokenBatch,
        environment: Environment,
        *,
        key: Array,
        completions: int,
    ) -> Conversed:
        def sample(prompts, row, /, *, key, config):
            parts = shard((prompts, row), devices)
            return unshard(step(config)(params, *parts, key=key))

        each = dataclasses.replace(sampling, completions=completions)
        rollout = interact(
            sample,
            prompts,
            environment,
            policy.tokenizer,
            key=key,
            sampling=each,
            config=config,
        )
        said = spoken(rollout, policy.tokenizer)
        return Conversed(
            rollout,
            prompts=[turns[0][1] for turns in said],
            answers=[turns[-1][1] for turns in said],
            called=[len(turns) > 2 for turns in said],
        )

    return converse
