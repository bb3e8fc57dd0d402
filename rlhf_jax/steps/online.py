"""Updates from pairs that the policy has drawn itself: online DPO, XPO, Nash-MD."""

import jax
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.online_loss import nash_md_loss, xpo_bonus
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.online_config import OnlinePreferenceConfig
from rlhf_jax.steps.pairs import PairExperience, of_side
from rlhf_jax.steps.preference import (
    REFERENCE_FREE,
    pair_logps,
    pair_terms,
    preference_step,
)
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, join_params


def online_preference_step(
    state: TrainState,
    experience: PairExperience,
    frozen: Params | None = None,
    *,
    config: OnlinePreferenceConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update: of online DPO it is ``preference_step``.

    XPO: L = Σ wᵢ (ℓᵢ + α log π(ỹᵢ)) / Σ wᵢ. Nash-MD: the mean of ``nash_md_loss`` over
    the policy's own completions. The papers are those of ``sample_pairs``.

    Args:
      state: policy with ``apply_fn`` an `ApplyFn`.
      experience: [B] pairs a device.
      frozen: parameters of the policy that are not trained; None where all are.
      config: the loss.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state; ``preference/*`` of pairs, with ``xpo/bonus``, or ``nash_md/*``;
      and ``optim/grad_norm``.
    """
    if config.loss == "pair" and config.xpo_coef == 0:
        free = config.preference.kind in REFERENCE_FREE
        reference = None if free else experience.reference
        trees = state, experience.pairs, None, frozen, reference
        return preference_step(*trees, config=config.preference, axis_name=axis_name)
    terms = _xpo_terms if config.loss == "pair" else _nash_md_terms
    loss_fn = lambda params, part: terms(
        state.apply_fn, join_params(frozen, params), part, config
    )
    return apply_loss(
        state,
        loss_fn,
        experience,
        micro_batches=config.preference.micro_batches,
        axis_name=axis_name,
    )


def _xpo_terms(
    apply_fn: ApplyFn,
    params: Params,
    part: PairExperience,
    config: OnlinePreferenceConfig,
) -> tuple[Array, Array, Metrics]:
    weight = part.pairs.weight
    found = pair_logps(
        apply_fn, params, part.pairs, weighted=config.preference.weighted
    )
    found = jax.tree.map(lambda x: x[:, 0], found)
    reference = part.reference[:, 0]
    terms, metrics = pair_terms(found, reference, weight, config.preference)
    bonus = xpo_bonus(of_side(found.sums, part.first_chosen, 1), alpha=config.xpo_coef)
    total, _ = masked_sum((terms + bonus) * weight, weight > 0)
    of_bonus = Metrics.of({"xpo/bonus": masked_sum(bonus, weight > 0)})
    return total, jnp.sum(weight), metrics + of_bonus


def _nash_md_terms(
    apply_fn: ApplyFn,
    params: Params,
    part: PairExperience,
    config: OnlinePreferenceConfig,
) -> tuple[Array, Array, Metrics]:
    choose = lambda x, y: jnp.where(part.first_chosen[:, None], x, y)
    own = jax.tree.map(choose, part.pairs.chosen, part.pairs.rejected)
    logprobs = policy_forward(apply_fn, params, own, temperature=1.0).logprobs
    logps = jnp.sum(jnp.where(own.mask, logprobs, 0.0), axis=1)
    ref_logps = of_side(part.reference[:, 0], part.first_chosen, 0)
    beta = config.preference.beta
    terms = nash_md_loss(logps, ref_logps, part.win_probs, beta=beta)
    total, count = masked_sum(terms, jnp.any(own.mask, axis=1))
    return total, count, Metrics.of({"nash_md/loss": (total, count)})
