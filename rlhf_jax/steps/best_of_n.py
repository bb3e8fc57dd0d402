"""Several responses a prompt, of which the best is imitated."""

import jax
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.best_of_n import best_of_n
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.pairs import objective_metrics
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, Rollout, TokenBatch


def best_of_n_step(
    ref_params: Params,
    rollout: Rollout,
    scores: Array,
    *,
    ref_apply_fn: ApplyFn,
    group_size: int,
    axis_name: str | None = None,
) -> tuple[TokenBatch, Metrics]:
    """Keeps the best response to each prompt, for `sft_step`.

    Round after round that is expert iteration: Dong et al. 2023 (RAFT),
    arXiv:2304.06767; ReST, arXiv:2308.08998, keeps all above a threshold instead.

    Args:
      ref_params: of the policy that training began with, for the KL to it.
      rollout: [B, T], the responses to a prompt in adjacent rows, none packed.
      scores: [B] float, one number a response.
      ref_apply_fn: that policy.
      group_size: n, responses a prompt; divides B.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      [B / n, T] of this device, its mask the responses; and of the global batch
      ``objective/*`` and ``rollout/*`` of all responses, and ``best/score`` of those
      that are kept (docs/metrics). Where the prompt is padding, the mask is empty.

    Raises:
      ValueError: if group_size does not divide B.
    """
    scores = scores.astype(jnp.float32)
    mask, answered = rollout.batch.mask, jnp.any(rollout.batch.mask, axis=1)
    reference = policy_forward(ref_apply_fn, ref_params, rollout.batch, temperature=1.0)
    ref_logps = jnp.sum(jnp.where(mask, reference.logprobs, 0.0), axis=1)
    best = best_of_n(scores, group_size=group_size)
    kept = jax.tree.map(lambda x: x[best], rollout.batch)
    metrics = objective_metrics(rollout, scores, ref_logps, answered)
    metrics += Metrics.of({"best/score": masked_sum(scores[best], answered[best])})
    return kept, metrics.reduce(axis_name)
