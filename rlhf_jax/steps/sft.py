"""Supervised fine-tuning: maximum likelihood of demonstrations."""

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.supervised_loss import supervised_loss
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import ApplyFn, Metrics, Params, TokenBatch, join_params


def sft_step(
    state: TrainState,
    batch: TokenBatch,
    frozen: Params | None = None,
    *,
    micro_batches: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of L = −Σ mₜ log π(aₜ | sₜ) / Σ mₜ over the global batch.

    Ouyang et al. 2022, arXiv:2203.02155.

    Args:
      state: policy with ``apply_fn`` an `ApplyFn`.
      batch: [B, T] tokens; the mask says which are learned.
      frozen: parameters of the network that are not trained, such as those under
        adapters; None where all are.
      micro_batches: parts that are computed one after the other (`apply_loss`).
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state, and ``sft/loss`` (nats a token), ``optim/grad_norm``. A batch that
      is masked everywhere has loss 0 and gradient 0.
    """

    def loss_fn(params, part):
        whole = join_params(frozen, params)
        policy = policy_forward(state.apply_fn, whole, part, temperature=1.0)
        terms, metrics = supervised_loss(policy.logprobs, part.mask)
        return *masked_sum(terms, part.mask), metrics

    return apply_loss(
        state, loss_fn, batch, micro_batches=micro_batches, axis_name=axis_name
    )


def sft_eval(
    params: Params,
    batch: TokenBatch,
    frozen: Params | None = None,
    *,
    apply_fn: ApplyFn,
    axis_name: str | None = None,
) -> Metrics:
    """``sft/loss`` (nats a token) of the global batch, without an update.

    No reference.
    """
    whole = join_params(frozen, params)
    policy = policy_forward(apply_fn, whole, batch, temperature=1.0)
    _, metrics = supervised_loss(policy.logprobs, batch.mask)
    return metrics.reduce(axis_name)
