"""What a policy is trained for, in numbers: scores, KL, groups."""

import jax.numpy as jnp

from rlhf_jax.masking import last_token_mask, masked_sum
from rlhf_jax.steps.policy_config import PolicyConfig
from rlhf_jax.types import Array, Metrics, Rollout


def episode_kl(rollout: Rollout, ref_logprobs: Array) -> tuple[Array, Array]:
    """(sum over episodes of Σₜ log π − log π_ref, episodes): nats an episode, by k1.

    No reference.
    """
    kl, _ = masked_sum(rollout.logprobs - ref_logprobs, rollout.batch.mask)
    return kl, jnp.sum(rollout.row >= 0, dtype=jnp.float32)


def objective_metrics(
    rollout: Rollout,
    ref_logprobs: Array | None,
    rewards: Array,
    scores: Array,
    kl_coef: Array,
) -> Metrics:
    """Sums over this device's responses."""
    mask = rollout.batch.mask
    neg_logprob, tokens = masked_sum(-rollout.logprobs, mask)
    others = rewards - jnp.where(last_token_mask(mask), scores[:, None], 0.0)
    episodes = jnp.sum(rollout.row >= 0, dtype=jnp.float32)
    per_episode = {
        "objective/entropy": neg_logprob,
        "objective/score": jnp.sum(scores),
        "objective/non_score_reward": jnp.sum(others),
        "rollout/response_length": tokens,
        "rollout/ended": jnp.sum(~rollout.truncated),
    }
    if ref_logprobs is not None:
        per_episode["objective/kl"], _ = episode_kl(rollout, ref_logprobs)
        per_episode["objective/kl_coef"] = kl_coef * episodes
    return Metrics.of({name: (total, episodes) for name, total in per_episode.items()})


def group_metrics(every: Array, config: PolicyConfig) -> Metrics:
    """From the scores of the global batch, so there is nothing to reduce."""
    scores = every.reshape(-1, config.sampling.completions)
    count = scores.shape[0]
    equal = jnp.all(scores == scores[:, :1], axis=1)
    deviation = jnp.std(scores, axis=1, ddof=1)
    return Metrics.of(
        {
            "group/score_std": (jnp.sum(deviation), count),
            "group/equal": (jnp.sum(equal), count),
        }
    )
