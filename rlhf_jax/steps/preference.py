"""Training a policy on preferences directly: DPO and its relatives."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.preference_loss import implicit_reward, preference_loss
from rlhf_jax.ops.preference_weights import (
    length_desensitized_logps,
    on_policy_weight,
)
from rlhf_jax.ops.reference_free_loss import reference_free_loss
from rlhf_jax.ops.reward_loss import pairwise_accuracy
from rlhf_jax.steps.forward import both_sides, policy_view
from rlhf_jax.steps.preference_config import (
    OF_MEANS,
    OF_RANKS,
    REFERENCE_FREE,
    PreferenceConfig,
)
from rlhf_jax.steps.state import TrainState, apply_loss, cut
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Metrics,
    Params,
    PreferenceBatch,
    join_params,
)


def preference_step(
    state: TrainState,
    batch: PreferenceBatch,
    ref_params: Params | None = None,
    frozen: Params | None = None,
    reference: Array | None = None,
    *,
    ref_apply_fn: ApplyFn | None = None,
    config: PreferenceConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of L = Σ wᵢ (ℓᵢ + c NLLᵢ) / Σ wᵢ over the global batch.

    ℓ is ``preference_loss`` or ``reference_free_loss``, where the papers are named, NLL
    the negative log-likelihood a token of the chosen completion. A log-prob is the sum
    over the completion's tokens, for ipo too, and the mean for simpo and orpo; with
    ``ld_alpha`` a weighted sum (`length_desensitized_logps`). With ``weighted``, ℓᵢ is
    multiplied by both sides' `on_policy_weight`, not the divisor. Chosen and rejected
    go through a network in one call. ``batch.margin`` has no part.

    A reference that never changes is better asked once, before training: hand its
    ``reference_logps`` in, instead of its parameters. With one that follows the policy
    (TR-DPO, arXiv:2404.09656) the step is ``following_step``.

    Args:
      state: policy with ``apply_fn`` an `ApplyFn`.
      batch: [B, T] pairs, both sides equally wide, rows packed or not; the masks say
        which tokens are the completion, the weights how much a pair counts.
      ref_params: of the reference policy; no gradient goes there. None with
        ``reference``, and for kinds without a reference.
      frozen: parameters of the policy that are not trained; None where all are.
      reference: [B, S, 2] float32 nats, ``reference_logps`` of this batch, or None.
      ref_apply_fn: the reference policy, where there are ``ref_params``.
      config: the loss.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and ``preference/*`` (docs/metrics), ``optim/grad_norm``. A pair of
      weight 0 has no part, a masked token neither; all weights 0 give gradient 0.

    Raises:
      ValueError: there is no reference or one too many, or its shape is not that of the
        batch; the pairs that a kind ranks are spread over a mapped axis.
    """
    _check(batch, ref_params, reference, ref_apply_fn, config, axis_name)
    if ref_params is not None and ref_apply_fn is not None:
        reference = _ask(ref_params, ref_apply_fn, batch, config)
    elif reference is None:
        reference = jnp.zeros((*batch.weight.shape, 1)[:2] + (2,), jnp.float32)

    def loss_fn(params, part):
        pairs, reference = part
        found = pair_logps(
            state.apply_fn,
            join_params(frozen, params),
            pairs,
            ld_alpha=config.ld_alpha,
            weighted=config.weighted,
        )
        weight = pairs.weight.ravel()
        found, reference = jax.tree.map(lambda x: x.reshape(-1, 2), (found, reference))
        terms, metrics = pair_terms(found, reference, weight, config)
        total, _ = masked_sum(terms * weight, weight > 0)
        return total, jnp.sum(weight), metrics

    return apply_loss(
        state,
        loss_fn,
        (batch, jax.lax.stop_gradient(reference)),
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def _ask(
    ref_params: Params,
    ref_apply_fn: ApplyFn,
    batch: PreferenceBatch,
    config: PreferenceConfig,
) -> Array:
    """`reference_logps`, of as many rows at a time as the update has."""
    ask = functools.partial(
        reference_logps, ref_params, ref_apply_fn=ref_apply_fn, ld_alpha=config.ld_alpha
    )
    if config.micro_batches == 1:
        return ask(batch)
    parts = jax.lax.map(ask, cut(batch, config.micro_batches))
    return parts.reshape(-1, *parts.shape[2:])


def reference_logps(
    ref_params: Params,
    batch: PreferenceBatch,
    *,
    ref_apply_fn: ApplyFn,
    ld_alpha: float = 1.0,
) -> Array:
    """The log-probs of pairs under the reference policy: log π_ref(y | x). No paper.

    For ``preference_step``, once before training: same batch, same rows.

    Args:
      ref_params: of the reference policy; no gradient goes there.
      batch: [B, T] pairs, S of them in a row; S = 1 where they are not packed.
      ref_apply_fn: the reference policy.
      ld_alpha: that of the ``PreferenceConfig``.

    Returns:
      [B, S, 2] float32 nats, chosen first; 0 where a row has no such pair.
    """
    found = pair_logps(ref_apply_fn, ref_params, batch, ld_alpha=ld_alpha)
    return jax.lax.stop_gradient(found.sums)


class PairLogps(NamedTuple):
    """What a policy thinks of pairs; each [B, S, 2], chosen first."""

    sums: (
        Array  # Σ log π of the unmasked tokens, less of those at the end with ld_alpha
    )
    counts: Array  # how many these tokens are
    own: Array | None  # how much the completion is the policy's own; None: not asked


def pair_logps(
    apply_fn: ApplyFn,
    params: Params,
    pairs: PreferenceBatch,
    *,
    ld_alpha: float = 1.0,
    weighted: bool = False,
) -> PairLogps:
    """Log-probs of both sides of pairs, in one call of the network."""
    both, segments = both_sides(pairs)
    output = apply_fn(params, both)
    owned = segments & both.mask[:, None]
    rows, segments, width = owned.shape
    of_each = lambda x: jnp.repeat(x, segments, axis=0)  # [2B, T] -> [2B·S, T]
    logprobs = of_each(policy_view(output, both, temperature=1.0).logprobs)
    owned, own = owned.reshape(-1, width), None
    others = jnp.roll(owned, len(owned) // 2, axis=0)  # the rejected follow the chosen
    sums = length_desensitized_logps(logprobs, owned, others, alpha=ld_alpha)
    if weighted:
        # log Σ π² = 2 log π − log π′, where π′ is the policy at temperature ½.
        output = jax.lax.stop_gradient(output)
        sharper = of_each(policy_view(output, both, temperature=0.5).logprobs)
        own = on_policy_weight(logprobs, 2.0 * logprobs - sharper, owned)
    counts = jnp.sum(owned, axis=1, dtype=jnp.float32)
    chosen_first = lambda x: jnp.stack(jnp.split(x.reshape(rows, segments), 2), axis=2)
    return jax.tree.map(chosen_first, PairLogps(sums, counts, own))


def pair_terms(
    found: PairLogps, reference: Array, weight: Array, config: PreferenceConfig
) -> tuple[Array, Metrics]:
    """Losses of the pairs from arrays [B, 2], chosen first; and their metrics."""
    means = found.sums / jnp.maximum(found.counts, 1.0)
    logps = means if config.kind in OF_MEANS else found.sums
    terms = _losses(logps, reference, weight > 0, config)
    if found.own is not None:
        terms = terms * jnp.prod(found.own, axis=1)
    if config.nll_coef:
        terms = terms - config.nll_coef * means[:, 0]
    better, worse = (
        implicit_reward(logps[:, i], reference[:, i], beta=config.beta) for i in (0, 1)
    )
    loss, counted = masked_sum(terms * weight, weight > 0)[0], weight > 0
    of_pairs = {
        "preference/accuracy": pairwise_accuracy(better, worse),
        "preference/margin": better - worse,
        "preference/chosen_logps": logps[:, 0],
        "preference/rejected_logps": logps[:, 1],
    }
    if found.own is not None:
        of_pairs["preference/own"] = jnp.prod(found.own, axis=1)
    means_of = {name: masked_sum(x, counted) for name, x in of_pairs.items()}
    return terms, Metrics.of({"preference/loss": (loss, jnp.sum(weight))} | means_of)


def _losses(
    logps: Array, reference: Array, mask: Array, config: PreferenceConfig
) -> Array:
    chosen, rejected = logps[:, 0], logps[:, 1]
    match config.kind:
        case "simpo" | "cpo" | "cpo_hinge" | "orpo" as kind:
            return reference_free_loss(
                chosen, rejected, kind=kind, beta=config.beta, gamma=config.gamma
            )
        case kind:
            return preference_loss(
                chosen,
                rejected,
                reference[:, 0],
                reference[:, 1],
                kind=kind,
                beta=config.beta,
                label_smoothing=config.label_smoothing,
                tau=config.tau,
                divergence=config.divergence,
                alpha=config.alpha,
                mask=mask,
            )


def _check(
    batch: PreferenceBatch,
    ref_params: Params | None,
    reference: Array | None,
    ref_apply_fn: ApplyFn | None,
    config: PreferenceConfig,
    axis_name: str | None,
) -> None:
    given, wrong = (ref_params is not None, reference is not None), None
    shape = (*batch.weight.shape, 1)[:2] + (2,)
    if config.kind in REFERENCE_FREE and any(given):
        wrong = f"kind = {config.kind!r} has no reference, expected none"
    elif config.kind not in REFERENCE_FREE and not any(given):
        wrong = f"kind = {config.kind!r}, expected ref_params or reference"
    elif all(given):
        wrong = "both ref_params and reference, expected one of them"
    elif ref_params is not None and ref_apply_fn is None:
        wrong = "ref_params without ref_apply_fn, expected both"
    elif reference is not None and reference.shape != shape:
        wrong = f"reference of shape {reference.shape}, expected {shape}"
    elif config.kind in OF_RANKS and axis_name is not None:
        wrong = (
            f"kind = {config.kind!r} over the devices of {axis_name!r}, expected one "
            "device or a mesh: it ranks the pairs of the whole batch"
        )
    if wrong:
        raise ValueError(f"preference_step: {wrong}")
