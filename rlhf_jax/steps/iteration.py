"""A whole iteration in one pure function: sample, score, look ahead, all epochs.

Nothing of it runs on the host, so that ``jax.jit`` makes one program of it and
``jax.vmap`` a population over seeds, prompts, KL coefficients and learning rates. A
reward that is a Python function of texts cannot be part of it: then the steps are
called one by one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps.config import PPOConfig
from rlhf_jax.steps.group import group_experience_step, group_step
from rlhf_jax.steps.group_config import GroupConfig
from rlhf_jax.steps.policy import policy_step
from rlhf_jax.steps.rollout import experience_step, sample_step
from rlhf_jax.steps.state import PolicyState, TrainState
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, Rollout, TokenBatch

RewardFn = Callable[[Params, Rollout], Array]  # (its params, rollout) -> [B] float
Layout = Callable[[Params], Params]


def ppo_iteration(
    state: PolicyState,
    prompts: TokenBatch,
    ref_params: Params,
    reward_params: Params = None,
    frozen: Params | None = None,
    *,
    key: Array,
    sample_fn: ApplyFn,
    ref_apply_fn: ApplyFn,
    reward_fn: RewardFn,
    config: PPOConfig,
    layout: Layout = lambda params: params,
    axis_name: str | None = None,
) -> tuple[PolicyState, Metrics]:
    """One iteration of PPO: `sample_step`, r(x, y), `experience_step`, `policy_step`.

    Ouyang et al. 2022, arXiv:2203.02155, step 3; one program as in Lu et al. 2022
    (PureJaxRL), arXiv:2210.05639. Under ``jax.vmap`` members may differ in all arrays:
    parameters, ``state.kl_coef``, key, prompts, and the learning rate where the
    optimiser keeps it in its state (`optim.make_tunable_optimizer`).

    Args:
      state: policy and critic.
      prompts: [B, P] a device, left-padded.
      ref_params: of the reference policy.
      reward_params: what ``reward_fn`` is called with; None for a rule.
      frozen: parameters of policy and critic that are not trained; None where all are.
      key: PRNG key of the iteration, the same on every device.
      sample_fn: the policy alone, with the cache that sampling is to have.
      ref_apply_fn: the reference policy.
      reward_fn: (reward_params, rollout) -> [B · completions] float, one number a
        sequence, of tokens in ``rollout.batch.mask``; pure JAX.
      config: of sampling, rewards and update.
      layout: makes the parameters of ``sample_fn`` from those of the policy.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state, and the metrics of `experience_step` (of the policy before) and of
      `policy_step`, over the global batch. Tokens outside the mask have no part.

    Raises:
      ValueError: no critic; minibatches do not divide the global batch into equal
        device parts.

    >>> import optax
    >>> from rlhf_jax.steps.state import create_policy_state
    >>> from rlhf_jax.types import ModelOutput
    >>> coin = lambda params, batch, **_: ModelOutput(
    ...     logits=params["logits"][batch.tokens], values=0.0 * batch.tokens, cache=())
    >>> params = {"logits": jnp.zeros((2, 2))}
    >>> state = create_policy_state(coin, params, optax.sgd(1.0), kl_coef=0.1)
    >>> one = jnp.ones((64, 1), jnp.int32)
    >>> prompts = TokenBatch(one, segment_ids=one, positions=0 * one, mask=one < 1)
    >>> state, metrics = ppo_iteration(
    ...     state, prompts, params, key=jax.random.key(0), sample_fn=coin,
    ...     ref_apply_fn=coin, reward_fn=lambda _, rollout: rollout.batch.tokens[:, 1],
    ...     config=PPOConfig(SamplingConfig(max_new_tokens=1), missing_stop="keep"))
    >>> bool(state.params["logits"][1, 1] > 0), metrics.compute()["objective/kl"]
    (True, 0.0)
    """
    rollout, update_key = _sample(
        state.params,
        prompts,
        frozen,
        key=key,
        sample_fn=sample_fn,
        config=config.sampling,
        layout=layout,
        axis_name=axis_name,
    )
    scores = reward_fn(reward_params, rollout)
    experience, objective = experience_step(
        state,
        ref_params,
        rollout,
        scores,
        frozen,
        ref_apply_fn=ref_apply_fn,
        config=config,
        axis_name=axis_name,
    )
    state, improvement = policy_step(
        state, experience, frozen, key=update_key, config=config, axis_name=axis_name
    )
    return state, objective + improvement


def group_iteration(
    state: TrainState,
    prompts: TokenBatch,
    ref_params: Params,
    reward_params: Params = None,
    frozen: Params | None = None,
    *,
    key: Array,
    sample_fn: ApplyFn,
    ref_apply_fn: ApplyFn,
    reward_fn: RewardFn,
    config: GroupConfig,
    layout: Layout = lambda params: params,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One iteration of GRPO or a relative: `sample_step`, r(x, y),
    `group_experience_step`, `group_step`.

    Shao et al. 2024, arXiv:2402.03300, algorithm 1. Under ``jax.vmap`` members may
    differ in all arrays, as those of `ppo_iteration`; the KL coefficient is a number of
    the config here, and the same for all.

    Args:
      state: the policy.
      prompts: [M, P] a device, left-padded; each is answered ``completions`` times.
      ref_params: of the reference policy; not looked at if ``kl_coef`` is 0.
      reward_params: what ``reward_fn`` is called with; None for a rule.
      frozen: parameters of the policy that are not trained; None where all are.
      key: PRNG key of the iteration, the same on every device.
      sample_fn: the policy, with the cache that sampling is to have.
      ref_apply_fn: the reference policy; not called if ``kl_coef`` is 0.
      reward_fn: (reward_params, rollout) -> [M · completions] float, one number a
        sequence, of tokens in ``rollout.batch.mask``; pure JAX.
      config: of sampling, advantages and update.
      layout: makes the parameters of ``sample_fn`` from those of the policy.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state, and the metrics of `group_experience_step` (of the policy before)
      and of `group_step`, over the global batch. Tokens outside the mask have no part.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts.

    >>> import optax
    >>> from rlhf_jax.steps.state import create_state
    >>> from rlhf_jax.types import ModelOutput
    >>> from typing import NamedTuple
    >>> class NoCache(NamedTuple):
    ...     share = lambda self, times, columns: self
    >>> coin = lambda params, batch, **_: ModelOutput(
    ...     logits=params["logits"][batch.tokens], cache=NoCache())
    >>> params = {"logits": jnp.zeros((2, 2))}
    >>> state, one = create_state(coin, params, optax.sgd(1.0)), jnp.ones((64, 1), int)
    >>> prompts = TokenBatch(one, segment_ids=one, positions=0 * one, mask=one < 1)
    >>> state, metrics = group_iteration(
    ...     state, prompts, params, key=jax.random.key(0), sample_fn=coin,
    ...     ref_apply_fn=coin, reward_fn=lambda _, rollout: rollout.batch.tokens[:, 1],
    ...     config=GroupConfig(SamplingConfig(max_new_tokens=1, completions=4)))
    >>> bool(state.params["logits"][1, 1] > 0), metrics.compute()["objective/kl"]
    (True, 0.0)
    """
    rollout, update_key = _sample(
        state.params,
        prompts,
        frozen,
        key=key,
        sample_fn=sample_fn,
        config=config.sampling,
        layout=layout,
        axis_name=axis_name,
    )
    scores = reward_fn(reward_params, rollout)
    experience, objective = group_experience_step(
        ref_params,
        rollout,
        scores,
        ref_apply_fn=ref_apply_fn,
        config=config,
        axis_name=axis_name,
    )
    state, improvement = group_step(
        state, experience, frozen, key=update_key, config=config, axis_name=axis_name
    )
    return state, objective + improvement


def _sample(
    params: Params,
    prompts: TokenBatch,
    frozen: Params | None,
    *,
    key: Array,
    sample_fn: ApplyFn,
    config: SamplingConfig,
    layout: Layout,
    axis_name: str | None,
) -> tuple[Rollout, Array]:
    """(rollout, key of the update); rows count through the devices."""
    sample_key, update_key = jax.random.split(key)
    count = prompts.tokens.shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    rollout = sample_step(
        params,
        prompts,
        first + jnp.arange(count, dtype=jnp.int32),
        frozen,
        key=sample_key,
        apply_fn=sample_fn,
        config=config,
        layout=layout,
        axis_name=axis_name,
    )
    return rollout, update_key
