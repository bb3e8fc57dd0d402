"""Losses of pairs that need no reference policy."""

from typing import get_args

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.preference_options import ReferenceFreeKind, complaint
from rlhf_jax.types import Array


def reference_free_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    *,
    kind: ReferenceFreeKind,
    beta: float,
    gamma: float | None = None,
) -> Array:
    """Losses of log π(y₊) and log π(y₋) themselves, a number a pair.

    With the sums s = log π(y), or ℓ, their means over the tokens of y:

    * simpo = −log σ(β(ℓ₊ − ℓ₋) − γ): Meng et al. 2024, arXiv:2405.14734, eq. 6
    * cpo = −log σ(β(s₊ − s₋)): Xu et al. 2024, arXiv:2401.08417, eq. 3
    * cpo_hinge = max(0, 1 − β(s₊ − s₋)): the calibration of SLiC-HF with δ = 1/β, times
      β: Zhao et al. 2023, arXiv:2305.10425
    * orpo = −β log σ(log odds(ℓ₊) − log odds(ℓ₋)), log odds(ℓ) = ℓ − log(1 − eˡ): Hong
      et al. 2024, arXiv:2403.07691, eq. 7, whose λ is our β

    CPO, SLiC-HF and ORPO add the negative log-likelihood of the chosen completion. That
    is ``supervised_loss`` and not in here: the caller adds the two, with a weight.

    Args:
      chosen_logps: [B] float nats, of the preferred completions: for simpo and orpo the
        mean a token, for cpo and cpo_hinge the sum. Which it is cannot be seen here.
      rejected_logps: [B] float nats, likewise, of the others.
      kind: which loss.
      beta: β > 0 in score units a nat; for orpo the weight of the loss.
      gamma: γ ≥ 0, for simpo: the lead in score units that a pair should have. None: ½.

    Returns:
      [B] float32 nats. No mask: pairs are independent of one another.

    Raises:
      ValueError: if an option is out of range, or given to a kind that has none.

    >>> chosen, rejected = jnp.array([-1.0]), jnp.array([-2.0])
    >>> loss = reference_free_loss(
    ...     chosen, rejected, kind="simpo", beta=2.0, gamma=2.0
    ... )
    >>> round(loss.item(), 3)  # as far apart as asked for: log 2
    0.693
    """
    kinds = get_args(ReferenceFreeKind)
    if wrong := complaint(kind, kinds, beta=beta, gamma=gamma):
        raise ValueError(f"reference_free_loss: {wrong}")
    chex.assert_rank([chosen_logps, rejected_logps], 1)
    chex.assert_equal_shape([chosen_logps, rejected_logps])
    chosen, rejected = (x.astype(jnp.float32) for x in (chosen_logps, rejected_logps))
    match kind:
        case "simpo":
            gamma = 0.5 if gamma is None else gamma
            return jax.nn.softplus(gamma - beta * (chosen - rejected))
        case "cpo":
            return jax.nn.softplus(-beta * (chosen - rejected))
        case "cpo_hinge":
            return jax.nn.relu(1.0 - beta * (chosen - rejected))
        case "orpo":
            return beta * jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen))


def _log_odds(logps: Array) -> Array:
    """log p/(1 − p) of p = e^logps."""
    below_one = jnp.minimum(logps, -jnp.finfo(jnp.float32).tiny)  # p = 1 is infinite
    return logps - jax.nn.log1mexp(-below_one)
