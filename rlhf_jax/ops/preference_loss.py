"""Losses that train a policy on what people prefer, without a reward model."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array

PreferenceKind = Literal["dpo", "ipo"]


def preference_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    kind: PreferenceKind = "dpo",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Array:
    """Losses of Δ = log π(y₊)/π_ref(y₊) − log π(y₋)/π_ref(y₋), a number a pair.

    * dpo = −(1 − ε) log σ(βΔ) − ε log σ(−βΔ); with ε > 0 it is cDPO
    * ipo = (Δ − 1/(2β))²

    DPO: Rafailov et al. 2023, arXiv:2305.18290, eq. 7. Smoothing: Mitchell 2023, "A
    note on DPO with noisy preferences" (cDPO), compared in arXiv:2403.00409. IPO: Azar
    et al. 2023, arXiv:2310.12036, eq. 17, whose τ is our β.

    The four log-probs are taken as they are: the sum over a completion's tokens, as
    both papers write it, or the mean a token, if the caller has divided by the length.
    TRL sums for dpo and divides for ipo, where 1/(2β) then is a lead a token.

    Args:
      chosen_logps: [B] float nats, log π of the preferred completions.
      rejected_logps: [B] float nats, log π of the others.
      ref_chosen_logps: [B] float nats, of the reference policy.
      ref_rejected_logps: [B] float nats, of the reference policy.
      kind: which loss.
      beta: β > 0: how strongly the policy is held to the reference; score units a nat
        for dpo, 1/nats for ipo.
      label_smoothing: ε, 0 ≤ ε < ½: the share of pairs whose label is believed to be
        the wrong way round; for dpo only.

    Returns:
      [B] float32; nats for dpo, nats² for ipo. No mask: pairs are independent of one
      another.

    Raises:
      ValueError: if kind is unknown, beta is not positive, or label_smoothing is out of
        range or given to ipo.

    >>> zero, one = jnp.zeros(1), jnp.ones(1)
    >>> round(preference_loss(one, zero, one, zero).item(), 3)  # π = π_ref: log 2
    0.693
    >>> preference_loss(one, zero, one, zero, kind="ipo", beta=0.5).item()
    1.0
    """
    _check(kind, beta, label_smoothing)
    chosen = implicit_reward(chosen_logps, ref_chosen_logps, beta=1.0)
    rejected = implicit_reward(rejected_logps, ref_rejected_logps, beta=1.0)
    chex.assert_equal_shape([chosen, rejected])
    delta = chosen - rejected
    if kind == "ipo":
        return jnp.square(delta - 0.5 / beta)
    right, wrong = jax.nn.softplus(-beta * delta), jax.nn.softplus(beta * delta)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def implicit_reward(logps: Array, ref_logps: Array, *, beta: float = 0.1) -> Array:
    """The reward for which a policy is optimal: β (log π(y | x) − log π_ref(y | x)).

    Up to a number that depends on the prompt only, which no comparison of two
    completions of it sees. Rafailov et al. 2023, arXiv:2305.18290, eq. 5.

    Args:
      logps: [B] float nats, of the policy.
      ref_logps: [B] float nats, of the reference policy.
      beta: β in score units a nat.

    Returns:
      [B] float32 in score units. No mask: rows are independent of one another.

    >>> implicit_reward(jnp.array([-1.0]), jnp.array([-3.0]), beta=0.5).tolist()
    [1.0]
    """
    chex.assert_rank([logps, ref_logps], 1)
    chex.assert_equal_shape([logps, ref_logps])
    return beta * (logps.astype(jnp.float32) - ref_logps.astype(jnp.float32))


def _check(kind: str, beta: float, label_smoothing: float) -> None:
    if kind not in get_args(PreferenceKind):
        raise ValueError(f"preference_loss: kind = {kind!r}, expected dpo or ipo")
    if not beta > 0:
        raise ValueError(f"preference_loss: beta = {beta}, expected more than 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"preference_loss: label_smoothing = {label_smoothing}, expected 0 or "
            "more and less than 0.5"
        )
    if kind == "ipo" and label_smoothing:
        raise ValueError("preference_loss: label_smoothing is for dpo, not for ipo")
