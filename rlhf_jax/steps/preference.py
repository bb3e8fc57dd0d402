"""Training a policy on preferences directly: DPO and IPO."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp

from rlhf_jax.errors import UserError
from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.preference_loss import (
    PreferenceKind,
    implicit_reward,
    preference_loss,
)
from rlhf_jax.ops.reward_loss import pairwise_accuracy
from rlhf_jax.steps.forward import both_sides, policy_forward
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Metrics,
    Params,
    PreferenceBatch,
    join_params,
)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Preference optimisation without a reward model (arXiv:2305.18290, 2310.12036).

    Raises:
      UserError: a value that no training can have; the message names the option.

    >>> PreferenceConfig(label_smoothing=0.1).beta
    0.1
    """

    kind: PreferenceKind = "dpo"
    """The loss of a pair."""
    beta: float = 0.1
    """How strongly the policy is held to the reference; τ of IPO."""
    label_smoothing: float = 0.0
    """Share of pairs believed to be labelled the wrong way round; dpo only (cDPO)."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""

    def __post_init__(self):
        if self.kind not in get_args(PreferenceKind):
            raise UserError(f"kind = {self.kind!r}: expected dpo or ipo")
        if self.micro_batches < 1:
            raise UserError(f"micro_batches = {self.micro_batches}: expected 1 or more")
        if not self.beta > 0:
            raise UserError(f"beta = {self.beta}: expected more than 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing = {self.label_smoothing}: expected 0 or more and "
                "less than 0.5"
            )
        if self.kind == "ipo" and self.label_smoothing:
            raise UserError(
                f"label_smoothing = {self.label_smoothing}: it is for dpo; set it to "
                "0 for ipo"
            )


def preference_step(
    state: TrainState,
    batch: PreferenceBatch,
    ref_params: Params,
    frozen: Params | None = None,
    *,
    ref_apply_fn: ApplyFn,
    config: PreferenceConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of L = Σ wᵢ ℓᵢ / Σ wᵢ over the global batch, ℓ by ``preference_loss``.

    Rafailov et al. 2023, arXiv:2305.18290 (DPO); Azar et al. 2023, arXiv:2310.12036
    (IPO). Each log-prob is the sum over the completion's tokens, for ipo too. Chosen
    and rejected go through a network in one call. ``batch.margin`` has no part.

    Args:
      state: policy with ``apply_fn`` an `ApplyFn`.
      batch: [B, T] pairs, both sides equally wide, rows packed or not; the masks say
        which tokens are the completion, the weights how much a pair counts.
      ref_params: of the reference policy; no gradient goes there.
      frozen: parameters of the policy that are not trained; None where all are.
      ref_apply_fn: the reference policy.
      config: the loss.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and ``preference/*`` (docs/metrics), ``optim/grad_norm``. A pair of
      weight 0 has no part, a masked token neither; all weights 0 give gradient 0.
    """
    reference = _pair_logps(ref_apply_fn, ref_params, batch)
    reference = jax.lax.stop_gradient(reference)

    def loss_fn(params, part):
        pairs, reference = part
        logps = _pair_logps(state.apply_fn, join_params(frozen, params), pairs)
        weight = pairs.weight.ravel()
        terms, metrics = _terms(
            logps.reshape(-1, 2), reference.reshape(-1, 2), weight, config
        )
        total, _ = masked_sum(terms * weight, weight > 0)
        return total, jnp.sum(weight), metrics

    return apply_loss(
        state,
        loss_fn,
        (batch, reference),
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def _pair_logps(apply_fn: ApplyFn, params: Params, pairs: PreferenceBatch) -> Array:
    """[B, S, 2] nats, chosen first: Σ log π(completion | prompt), unmasked tokens."""
    both, segments = both_sides(pairs)
    policy = policy_forward(apply_fn, params, both, temperature=1.0)
    owned = segments & both.mask[:, None]
    sums = jnp.sum(jnp.where(owned, policy.logprobs[:, None], 0.0), axis=2)
    return jnp.stack(jnp.split(sums, 2), axis=2)


def _terms(
    logps: Array, reference: Array, weight: Array, config: PreferenceConfig
) -> tuple[Array, Metrics]:
    """Losses of the pairs from [B, 2] log-probs, chosen first; and their metrics."""
    chosen, rejected = logps[:, 0], logps[:, 1]
    terms = preference_loss(
        chosen,
        rejected,
        reference[:, 0],
        reference[:, 1],
        kind=config.kind,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
    )
    better, worse = (
        implicit_reward(logps[:, i], reference[:, i], beta=config.beta) for i in (0, 1)
    )
    loss, counts = masked_sum(terms * weight, weight > 0)[0], weight > 0
    return terms, Metrics.of(
        {
            "preference/loss": (loss, jnp.sum(weight)),
            "preference/accuracy": masked_sum(pairwise_accuracy(better, worse), counts),
            "preference/margin": masked_sum(better - worse, counts),
            "preference/chosen_logps": masked_sum(chosen, counts),
            "preference/rejected_logps": masked_sum(rejected, counts),
        }
    )
