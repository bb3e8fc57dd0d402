"""The PPO update: all epochs and minibatches of a batch of episodes, in one scan."""

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.kl import adaptive_kl_update
from rlhf_jax.ops.policy_loss import ppo_loss
from rlhf_jax.ops.value_loss import explained_variance, value_loss
from rlhf_jax.steps.config import PPOConfig
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.minibatches import gather, in_minibatches
from rlhf_jax.steps.rollout import episode_kl
from rlhf_jax.steps.state import PolicyState, apply_loss
from rlhf_jax.types import Array, Experience, Metrics, Params, join_params


def policy_step(
    state: PolicyState,
    experience: Experience,
    frozen: Params | None = None,
    *,
    key: Array,
    config: PPOConfig,
    axis_name: str | None = None,
) -> tuple[PolicyState, Metrics]:
    """Epochs × minibatches updates of L = L_clip + c_v · L_value, then the KL rule.

    Schulman et al. 2017, arXiv:1707.06347; adaptive β: Ziegler et al. 2019,
    arXiv:1909.08593. Minibatches are drawn from the global batch, each anew in every
    epoch, so that the result does not depend on the number of devices.

    Args:
      state: policy and critic.
      experience: [B, T] a device, rows packed or not.
      frozen: parameters of policy and critic that are not trained; None where all are.
      key: PRNG key of the permutations, the same on every device.
      config: epochs, minibatches, clip ranges, value coefficient, KL target.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and metrics: ``policy/*`` and ``value/*`` over all updates;
      ``first/*`` of the first update alone, where the ratio must still be 1.

    Raises:
      ValueError: minibatches do not divide the global batch into equal device parts.
    """
    update = lambda state, minibatch: ppo_update(
        state, minibatch, frozen, config=config, axis_name=axis_name
    )
    state, metrics = in_minibatches(
        update, state, experience, key=key, config=config, axis_name=axis_name
    )
    whole = gather(experience, axis_name)
    explained = explained_variance(
        whole.values, whole.returns, whole.rollout.batch.mask
    )
    metrics = metrics + Metrics.of({"value/explained_variance": (explained, 1)})
    return _adapt_kl_coef(state, whole, config), metrics


def ppo_update(
    state: PolicyState,
    minibatch: Experience,
    frozen: Params | None = None,
    *,
    config: PPOConfig,
    axis_name: str | None,
) -> tuple[PolicyState, Metrics]:
    """One update of the clipped policy loss plus the clipped value loss.

    Both are means over the tokens of the global minibatch; a masked token has no part.
    """

    def loss_fn(params, part):
        rollout, mask = part.rollout, part.rollout.batch.mask
        policy = policy_forward(
            state.apply_fn,
            join_params(frozen, params),
            rollout.batch,
            temperature=config.sampling.temperature,
            kept=rollout.kept,
        )
        if policy.values is None:
            raise ValueError("the policy has no critic: PPO needs one")
        policy_terms, policy_metrics = ppo_loss(
            policy.logprobs,
            rollout.logprobs,
            part.advantages,
            mask,
            clip_eps=config.clip_eps,
        )
        value_terms, value_metrics = value_loss(
            policy.values,
            part.values,
            part.returns,
            mask,
            clip_eps=config.value_clip_eps,
        )
        terms = policy_terms + config.value_coef * value_terms
        return *masked_sum(terms, mask), policy_metrics + value_metrics

    return apply_loss(
        state,
        loss_fn,
        minibatch,
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def _adapt_kl_coef(
    state: PolicyState, experience: Experience, config: PPOConfig
) -> PolicyState:
    if config.kl.target is None:
        return state
    kl, episodes = episode_kl(experience.rollout, experience.ref_logprobs)
    return state.replace(
        kl_coef=adaptive_kl_update(
            state.kl_coef,
            kl / episodes,
            target=config.kl.target,
            horizon=config.kl.horizon,
            num_episodes=episodes,
        )
    )
