"""Several responses a prompt, for scripts that choose among them without a critic."""

from collections.abc import Callable

import jax
import numpy as np

from experiments.online import OnlineConfig
from experiments.rollouts import Sampled
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import Devices, data_parallel, shard
from rlhf_jax.steps import TrainState
from rlhf_jax.types import Array, Params, Rollout, TokenBatch


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
