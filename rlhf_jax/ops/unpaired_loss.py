"""Losses of completions that are each good or bad, not better than another."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.preference_loss import implicit_reward
from rlhf_jax.types import Array

UnpairedKind = Literal["kto", "bco", "apo_zero"]


def unpaired_loss(
    logps: Array,
    ref_logps: Array,
    labels: Array,
    *,
    kind: UnpairedKind = "kto",
    beta: float = 0.1,
    baseline: Array | float | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Array:
    """Losses of u = log π(y)/π_ref(y), λ times (+ if y is good, − if it is bad):

    * kto = σ(∓β(u − max(0, z))): Ethayarajh et al. 2024, arXiv:2402.01306
    * bco = −log σ(±(βu − δ)): Jung et al. 2024, arXiv:2404.04656
    * apo_zero = σ(∓βu): one side of D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7;
      kto with z = 0

    KTO's z estimates KL(π ‖ π_ref): the mean of u over prompts with completions *of
    other prompts*. BCO's δ is a running mean of βu over the good and the bad. Both are
    the caller's: they need other forward passes, or a memory. No gradient goes there.
    AOT is the kind aot_unpaired of ``preference_loss``: ranks need as many good as bad.

    Args:
      logps: [B] float nats, log π, summed over a completion's tokens.
      ref_logps: [B] float nats, of the reference policy.
      labels: [B] bool, True = good ("desirable", "chosen").
      kind: which loss.
      beta: β > 0, score units a nat.
      baseline: float32 scalar: z in nats for kto, δ in score units for bco, None for
        apo_zero.
      desirable_weight: λ of the good, 0 or more.
      undesirable_weight: λ of the bad, 0 or more.

    Returns:
      [B] float32; nats for bco, a share times λ for the others. No mask: rows are
      independent of one another, weights of rows are the caller's factor.

    Raises:
      ValueError: if an option is out of range, or baseline is missing or too much.

    >>> zero, good = jnp.zeros(2), jnp.array([True, False])
    >>> unpaired_loss(zero, zero, good, baseline=0.0, desirable_weight=3.0).tolist()
    [1.5, 0.5]
    """
    _check(kind, beta, baseline, desirable_weight, undesirable_weight)
    chex.assert_rank([logps, labels], 1)
    chex.assert_equal_shape([logps, ref_logps, labels])
    chex.assert_type(labels, bool)
    sign = jnp.where(labels, 1.0, -1.0)
    weight = jnp.where(labels, desirable_weight, undesirable_weight)
    shift = jnp.asarray(0.0 if baseline is None else baseline, jnp.float32)
    chex.assert_rank(shift, 0)
    shift = jax.lax.stop_gradient(shift)
    reward = implicit_reward(logps, ref_logps, beta=beta)
    match kind:
        case "kto":
            lead = sign * (reward - beta * jnp.maximum(shift, 0.0))
            return weight * jax.nn.sigmoid(-lead)
        case "bco":
            return weight * jax.nn.softplus(-sign * (reward - shift))
        case "apo_zero":
            return weight * jax.nn.sigmoid(-sign * reward)


def _check(
    kind: str,
    beta: float,
    baseline: Array | float | None,
    desirable_weight: float,
    undesirable_weight: float,
) -> None:
    wrong = None
    if kind not in get_args(UnpairedKind):
        wrong = f"kind = {kind!r}, expected one of {', '.join(get_args(UnpairedKind))}"
    elif not beta > 0:
        wrong = f"beta = {beta}, expected more than 0"
    elif kind == "apo_zero" and baseline is not None:
        wrong = f"baseline = {baseline}: it is for kto, bco, not for apo_zero"
    elif kind != "apo_zero" and baseline is None:
        wrong = f"baseline = None, expected a number for {kind}"
    elif not desirable_weight >= 0:
        wrong = f"desirable_weight = {desirable_weight}, expected 0 or more"
    elif not undesirable_weight >= 0:
        wrong = f"undesirable_weight = {undesirable_weight}, expected 0 or more"
    if wrong:
        raise ValueError(f"unpaired_loss: {wrong}")
