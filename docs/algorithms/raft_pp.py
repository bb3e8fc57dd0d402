"""RAFT++: the best responses of a group are imitated, with clipped ratios."""

import jax.numpy as jnp

from rlhf_jax.ops import loss_weights, ppo_loss
from rlhf_jax.steps import apply_loss, policy_forward


def raft_pp_step(state, rollout, scores, *, config, axis_name=None):
    """One update of L = Σ max(−r, −clip(r, 1 ± ε)) over the tokens of the best.

    Xiong et al. 2025, arXiv:2504.11343. Args: a TrainState; a Rollout [B, T] with the
    responses to a prompt in adjacent rows, on one device; scores [B]; a PolicyConfig.
    """
    groups = scores.reshape(-1, config.sampling.completions)
    best = (groups == groups.max(axis=1, keepdims=True)).reshape(-1)

    def loss_fn(params, part):  # of one micro-batch: (sum, count, metrics)
        rollout, best = part
        batch, temperature = rollout.batch, config.sampling.temperature
        policy = policy_forward(
            state.apply_fn, params, batch, temperature=temperature, kept=rollout.kept
        )
        mask = batch.mask & best[:, None]
        advantages = jnp.ones_like(policy.logprobs)
        ratio_of = policy.logprobs, rollout.logprobs, advantages, mask
        terms, metrics = ppo_loss(*ratio_of, clip_eps=config.clip_eps)
        weights, count = loss_weights(mask, batch.segment_ids, kind=config.reduction)
        return jnp.sum(weights * terms), count, metrics

    parts = config.micro_batches
    options = {"micro_batches": parts, "axis_name": axis_name}
    return apply_loss(state, loss_fn, (rollout, best), **options)
