"""Supervised fine-tuning: maximum likelihood of demonstrations."""

from rlhf_jax.masking import masked_mean
from rlhf_jax.ops.supervised_loss import supervised_loss
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import ApplyFn, Metrics, Params, TokenBatch


def sft_step(
    state: TrainState, batch: TokenBatch, *, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """One update of L = −Σ mₜ log π(aₜ | sₜ) / Σ mₜ over the global batch.

    Ouyang et al. 2022, arXiv:2203.02155.

    Args:
      state: policy with ``apply_fn`` an `ApplyFn`.
      batch: [B, T] tokens; the mask says which are learned.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state, and ``sft/loss`` (nats a token), ``optim/grad_norm``. A batch that
      is masked everywhere has loss 0 and gradient 0.
    """

    def loss_fn(params):
        policy = policy_forward(state.apply_fn, params, batch, temperature=1.0)
        terms, metrics = supervised_loss(policy.logprobs, batch.mask)
        return masked_mean(terms, batch.mask, axis_name=axis_name), metrics

    return apply_loss(state, loss_fn, axis_name=axis_name)


def sft_eval(
    params: Params,
    batch: TokenBatch,
    *,
    apply_fn: ApplyFn,
    axis_name: str | None = None,
) -> Metrics:
    """``sft/loss`` (nats a token) of the global batch, without an update."""
    policy = policy_forward(apply_fn, params, batch, temperature=1.0)
    _, metrics = supervised_loss(policy.logprobs, batch.mask)
    return metrics.reduce(axis_name)
