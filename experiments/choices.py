"""Several responses a prompt, for scripts that choose among them without a critic."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.online import OnlineConfig
from experiments.rollouts import Sampled
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import Devices, data_parallel, shard
from rlhf_jax.steps import TrainState, policy_forward
from rlhf_jax.types import ApplyFn, Array, Params, Rollout, TokenBatch


def check_unpacked(config: OnlineConfig) -> None:
    """Refuses what is for the updates of other scripts.

    Raises:
      UserError: there is a pack_length.
    """
    if config.pack_length is not None:
        raise UserError(
            f"pack_length = {config.pack_length}: what is chosen here is not packed; "
            "leave it out"
        )


def make_choices(
    sample: Callable[..., Rollout],
    prepare: Callable[..., tuple],
    score: Callable[[Rollout], Array],
    ref_params: Params,
    frozen: Params | None,
    devices: Devices,
) -> Callable[[TrainState, TokenBatch, Array], Sampled]:
    """A function ``(state, prompts, key)``: samples, scores, chooses.

    Args:
      sample: a step (params, ref_params, prompts, row, frozen) with a key.
      prepare: a step (ref_params, rollout, scores) with a key, to (what the update
        learns from, metrics).
      score: of a sharded rollout, see `make_scorer`.
      ref_params: of the reference, on every device.
      frozen: parameters of the policy that are not trained, on every device, or None.
      devices: that share the prompts.
    """
    draw = data_parallel(sample, devices, in_axes=(None, None, 0, 0, None), out_axes=0)
    choose = data_parallel(prepare, devices, in_axes=(None, 0, 0), out_axes=(0, None))

    def sampled_of(state: TrainState, prompts: TokenBatch, key: Array) -> Sampled:
        sample_key, choice_key = jax.random.split(key)
        row = np.arange(prompts.tokens.shape[0], dtype=np.int32)
        asked = shard((prompts, row), devices)
        rollout = draw(state.params, ref_params, *asked, frozen, key=sample_key)
        scores = score(rollout)
        found = choose(ref_params, rollout, scores, key=choice_key)
        return Sampled(rollout, scores, *found)

    return sampled_of


def compare_tokens(
    sampled_of: Callable[..., Sampled],
    ref_apply_fn: ApplyFn,
    ref_params: Params,
    devices: Devices,
) -> Callable[..., Sampled]:
    """``sampled_of`` that tells of each token what the reference says of it.

    What is learned from compares whole completions, and has no use for it: this is for
    evaluations, which it costs another forward pass.
    """

    def reference(params: Params, batch: TokenBatch, *, axis_name=None) -> Array:
        del axis_name
        return policy_forward(ref_apply_fn, params, batch, temperature=1.0).logprobs

    logprobs_of = data_parallel(reference, devices, in_axes=(None, 0), out_axes=0)

    def compared(*given: Any) -> Sampled:
        sampled = sampled_of(*given)
        rollout = sampled.rollout
        both = rollout.raw_logprobs, logprobs_of(ref_params, rollout.batch)
        return sampled._replace(compared=both)

    return compared
