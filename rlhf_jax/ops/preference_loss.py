"""Losses that train a policy on what people prefer, without a reward model."""

import math
from collections.abc import Callable
from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.preference_options import Divergence, PreferenceKind, complaint
from rlhf_jax.types import Array


def preference_loss(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    kind: PreferenceKind = "dpo",
    beta: float = 0.1,
    label_smoothing: float | None = None,
    tau: float | None = None,
    divergence: Divergence = "reverse_kl",
    alpha: float | None = None,
    mask: Array | None = None,
) -> Array:
    """Losses of log-ratios u = log π(y)/π_ref(y), a number a pair; Δ = u₊ − u₋.

    * dpo = −(1 − ε) log σ(βΔ) − ε log σ(−βΔ); with ε > 0 it is cDPO
    * ipo = (Δ − 1/(2β))²
    * hinge = max(0, 1 − βΔ)
    * robust = (−(1 − ε) log σ(βΔ) + ε log σ(−βΔ)) / (1 − 2ε)
    * exo = KL(q ‖ p), q = (σ(βΔ), σ(−βΔ)), p = (1 − ε, ε)
    * discopop = −(1 − m) log σ(βΔ) + m exp(−βΔ), m = σ(βΔ/τ)
    * nca = −log σ(βu₊) − ½ log σ(−βu₊) − ½ log σ(−βu₋)
    * sppo = (u₊ − 1/(2β))² + (u₋ + 1/(2β))²
    * apo_zero = σ(−βu₊) + σ(βu₋)
    * apo_down = σ(βu₊) + σ(−βΔ)
    * aot = dpo of Δ = m − m′, m = log π(y₊)/π(y₋) of the pair and m′ that of π_ref at
      the same rank: the n-th least of the batch's m is compared with the n-th least m′
    * aot_unpaired = dpo of Δ = u₊ − u₋, u₋ at the rank that u₊ has

    The rows of aot and aot_unpaired are *not* independent of one another: each depends
    on the order of the whole batch, and a part of it gives other numbers.

    For the kinds of Δ alone, ``divergence`` is what holds the policy to the reference:
    Δ = f′(eᵘ₊) − f′(eᵘ₋), where f′(eᵘ), constants aside, is

    * reverse_kl: u. forward_kl: −e⁻ᵘ. js: log σ(u). alpha: (1 − e^(−αu))/α

    DPO: arXiv:2305.18290, eq. 7; cDPO: Mitchell 2023, "A note on DPO with noisy
    preferences". IPO: 2310.12036, eq. 17, whose τ is our β. Hinge: RSO, 2309.06657;
    SLiC, 2305.10425, has no reference (``reference_free_loss``). Robust: 2403.00409.
    EXO: 2402.00856, eq. 16. DiscoPOP: 2406.08414, eq. 5. NCA: 2402.05369, for two
    completions. SPPO: 2405.00675, eq. 4.7 with wins of 0 or 1, its η our 1/β. APO:
    2408.06266, eq. 7 and 8. AOT: 2406.05882. Divergences: 2309.16240, table 1.

    The four log-probs are taken as they are: the sum over a completion's tokens, as
    the papers write it, or the mean a token, if the caller has divided by the length.
    TRL sums, but divides for ipo, where 1/(2β) then is a lead a token. A reference that
    follows the policy (TR-DPO, 2404.09656) has the same loss; `steps.following_step`
    moves its parameters between updates.

    Args:
      chosen_logps: [B] float nats, log π of the preferred completions.
      rejected_logps: [B] float nats, log π of the others.
      ref_chosen_logps: [B] float nats, of the reference policy.
      ref_rejected_logps: [B] float nats, of the reference policy.
      kind: which loss.
      beta: β > 0: how strongly the policy is held to the reference; score units a nat,
        for ipo and sppo 1/nats.
      label_smoothing: ε, 0 ≤ ε < ½, for dpo, robust, exo, aot: the share of pairs whose
        label is believed to be the wrong way round. None: 0.001 for exo, else 0.
      tau: τ > 0, for discopop, in score units. None: 0.05, the paper's; below 0.102
        the loss rises with Δ where Δ = 0, where a policy that is its reference begins.
      divergence: f.
      alpha: α of the divergence alpha, 0 < α < 1: near 0 it is the reverse, near 1 the
        forward KL. None: ½.
      mask: [B] bool, the pairs there are; None: all.

    Returns:
      [B] float32: nats; nats² for ipo and sppo; 0 where masked, and no other row sees
      what lies there. But for aot, pairs are independent of one another.

    Raises:
      ValueError: if an option is out of range, or given to a kind that has none.

    >>> zero, one = jnp.zeros(1), jnp.ones(1)
    >>> round(preference_loss(one, zero, one, zero).item(), 3)  # π = π_ref: log 2
    0.693
    >>> preference_loss(one, zero, one, zero, kind="ipo", beta=0.5).item()
    1.0
    """
    given = {"label_smoothing": label_smoothing, "tau": tau, "alpha": alpha}
    kinds = get_args(PreferenceKind)
    if wrong := complaint(kind, kinds, beta=beta, divergence=divergence, **given):
        raise ValueError(f"preference_loss: {wrong}")
    four = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    chex.assert_rank(four, 1)
    chex.assert_equal_shape(four)
    mask = jnp.ones(chosen_logps.shape, bool) if mask is None else mask
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([mask, chosen_logps])
    keep = lambda x: jnp.where(mask, x, 0.0).astype(jnp.float32)
    score = lambda u: _score(u, divergence, 0.5 if alpha is None else alpha)
    chosen, rejected, ref_chosen, ref_rejected = map(keep, four)
    if kind == "aot":
        chosen, ref_chosen = chosen - rejected, ref_chosen - ref_rejected
        rejected = _of_same_rank(chosen, ref_chosen, mask)
    else:
        chosen, rejected = score(chosen - ref_chosen), score(rejected - ref_rejected)
    if kind == "aot_unpaired":
        rejected = _of_same_rank(chosen, rejected, mask)
    if label_smoothing is None:
        label_smoothing = 1e-3 if kind == "exo" else 0.0
    options = _Options(beta, label_smoothing, 0.05 if tau is None else tau)
    return keep(_KINDS[kind](chosen, rejected, options))


def _score(u: Array, divergence: Divergence, alpha: float) -> Array:
    """f′(eᵘ) but for a constant, which no lead sees."""
    match divergence:
        case "reverse_kl":
            return u
        case "forward_kl":
            return _power(u, 1.0)
        case "js":
            return jax.nn.log_sigmoid(u)
        case "alpha":
            return _power(u, alpha)


def _power(u: Array, alpha: float) -> Array:
    """(1 − e^(−αu))/α, its exponent cut: a lead of infinities would be NaN."""
    return -jnp.expm1(jnp.minimum(-alpha * u, 80.0)) / alpha


def _of_same_rank(x: Array, others: Array, mask: Array) -> Array:
    """The entry of others that has the rank there which each entry of x has in x."""
    last = lambda y: jnp.where(mask, y, jnp.inf)
    rank = jnp.argsort(jnp.argsort(last(x)))
    return jnp.where(mask, jnp.sort(last(others))[rank], 0.0)


# The kinds, of scores c = u₊ and r = u₋, or what stands for them.


class _Options(NamedTuple):
    beta: float
    eps: float  # label_smoothing
    tau: float


def _dpo(c: Array, r: Array, o: _Options) -> Array:
    right, wrong = _nll(o.beta * (c - r)), _nll(o.beta * (r - c))
    return (1.0 - o.eps) * right + o.eps * wrong


def _ipo(c: Array, r: Array, o: _Options) -> Array:
    return jnp.square(c - r - 0.5 / o.beta)


def _hinge(c: Array, r: Array, o: _Options) -> Array:
    return jax.nn.relu(1.0 - o.beta * (c - r))


def _robust(c: Array, r: Array, o: _Options) -> Array:
    right, wrong = _nll(o.beta * (c - r)), _nll(o.beta * (r - c))
    return ((1.0 - o.eps) * right - o.eps * wrong) / (1.0 - 2.0 * o.eps)


def _exo(c: Array, r: Array, o: _Options) -> Array:
    lead = o.beta * (c - r)
    right = jax.nn.sigmoid(lead) * (-_nll(lead) - math.log1p(-o.eps))
    wrong = jax.nn.sigmoid(-lead) * (-_nll(-lead) - math.log(o.eps))
    return right + wrong


def _discopop(c: Array, r: Array, o: _Options) -> Array:
    lead = o.beta * (c - r)
    # m e^(−βΔ) in one exponent: m alone is 0 where the other factor is infinite.
    exponential = jnp.exp(-_nll(lead / o.tau) - lead)
    return jax.nn.sigmoid(-lead / o.tau) * _nll(lead) + exponential


def _nca(c: Array, r: Array, o: _Options) -> Array:
    return _nll(o.beta * c) + 0.5 * (_nll(-o.beta * c) + _nll(-o.beta * r))


def _sppo(c: Array, r: Array, o: _Options) -> Array:
    return jnp.square(c - 0.5 / o.beta) + jnp.square(r + 0.5 / o.beta)


def _apo_zero(c: Array, r: Array, o: _Options) -> Array:
    return jax.nn.sigmoid(-o.beta * c) + jax.nn.sigmoid(o.beta * r)


def _apo_down(c: Array, r: Array, o: _Options) -> Array:
    return jax.nn.sigmoid(o.beta * c) + jax.nn.sigmoid(o.beta * (r - c))


def _nll(lead: Array) -> Array:
    """−log σ(lead)."""
    return jax.nn.softplus(-lead)


_KINDS: dict[str, Callable[[Array, Array, _Options], Array]] = {
    "dpo": _dpo,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "exo": _exo,
    "discopop": _discopop,
    "nca": _nca,
    "sppo": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "aot": _dpo,  # of sorted margins
    "aot_unpaired": _dpo,
}


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
