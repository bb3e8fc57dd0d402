"""A whole iteration in one pure function: sample, score, look ahead, all epochs.

Nothing of it runs on the host, so that ``jax.jit`` makes one program of it and
``jax.vmap`` a population over seeds, prompts, KL coefficients and learning rates. A
reward that is a Python function of texts cannot be part of it: then the steps are
called one by one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.sampling import greedy
from rlhf_jax.steps.experience import experience_step
from rlhf_jax.steps.policy import policy_step
from rlhf_jax.steps.policy_config import PolicyConfig
from rlhf_jax.steps.rollout import sample_step
from rlhf_jax.steps.state import PolicyState
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, Rollout, TokenBatch

RewardFn = Callable[[Params, Rollout], Array]  # (its params, rollout) -> [B] float
Layout = Callable[[Params], Params]


def policy_iteration(
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
    config: PolicyConfig,
    layout: Layout = lambda params: params,
    axis_name: str | None = None,
) -> tuple[PolicyState, Metrics]:
    """One iteration: `sample_step`, r(x, y), `experience_step`, `policy_step`.

    Ouyang et al. 2022, arXiv:2203.02155, step 3; Shao et al. 2024, arXiv:2402.03300,
    algorithm 1; one program as in Lu et al. 2022 (PureJaxRL), arXiv:2210.05639. Under
    ``jax.vmap`` members may differ in all arrays: parameters, ``state.kl_coef``, key,
    prompts, and the learning rate where the optimiser keeps it in its state
    (`optim.make_tunable_optimizer`). Whether there is a KL at all is the config's to
    say.

    Args:
      state: the policy, and its critic for the advantage gae.
      prompts: [M, P] a device, left-padded; each is answered ``completions`` times.
      ref_params: of the reference policy; not looked at if ``kl.coef`` is 0.
      reward_params: what ``reward_fn`` is called with; None for a rule.
      frozen: parameters of policy and critic that are not trained; None where all are.
      key: PRNG key of the iteration, the same on every device.
      sample_fn: the policy alone, with the cache that sampling is to have.
      ref_apply_fn: the reference policy; not called if ``kl.coef`` is 0.
      reward_fn: (reward_params, rollout) -> [M · completions] float, one number a
        sequence, of tokens in ``rollout.batch.mask``; pure JAX.
      config: of sampling, rewards and update.
      layout: makes the parameters of ``sample_fn`` from those of the policy.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state, and the metrics of `experience_step` (of the policy before) and of
      `policy_step`, over the global batch. Tokens outside the mask have no part.

    Raises:
      ValueError: no critic where one is needed; minibatches do not divide the global
        batch into equal device parts.

    >>> import optax
    >>> from rlhf_jax.sampling import SamplingConfig
    >>> from rlhf_jax.steps.state import create_policy_state
    >>> from rlhf_jax.types import ModelOutput
    >>> coin = lambda params, batch, **_: ModelOutput(
    ...     logits=params["logits"][batch.tokens], values=0.0 * batch.tokens, cache=())
    >>> params = {"logits": jnp.zeros((2, 2))}
    >>> state = create_policy_state(coin, params, optax.sgd(1.0), kl_coef=0.1)
    >>> one = jnp.ones((64, 1), jnp.int32)
    >>> prompts = TokenBatch(one, segment_ids=one, positions=0 * one, mask=one < 1)
    >>> state, metrics = policy_iteration(
    ...     state, prompts, params, key=jax.random.key(0), sample_fn=coin,
    ...     ref_apply_fn=coin, reward_fn=lambda _, rollout: rollout.batch.tokens[:, 1],
    ...     config=PolicyConfig(SamplingConfig(max_new_tokens=1), missing_stop="keep"))
    >>> bool(state.params["logits"][1, 1] > 0), metrics.compute()["objective/kl"]
    (True, 0.0)
    """
    sample_key, update_key = jax.random.split(key)
    count = prompts.tokens.shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    sample = functools.partial(
        sample_step,
        state.params,
        prompts,
        first + jnp.arange(count, dtype=jnp.int32),
        frozen,
        key=sample_key,
        apply_fn=sample_fn,
        layout=layout,
        axis_name=axis_name,
    )
    rollout, greedy_scores = sample(config=config.sampling), None
    if config.advantage == "greedy":
        best = reward_fn(reward_params, sample(config=greedy(config.sampling)))
        greedy_scores = jnp.repeat(best, config.sampling.completions)
    experience, objective = experience_step(
        state,
        ref_params,
        rollout,
        reward_fn(reward_params, rollout),
        frozen,
        greedy_scores,
        ref_apply_fn=ref_apply_fn,
        config=config,
        axis_name=axis_name,
    )
    state, improvement = policy_step(
        state, experience, frozen, key=update_key, config=config, axis_name=axis_name
    )
    return state, objective + improvement
