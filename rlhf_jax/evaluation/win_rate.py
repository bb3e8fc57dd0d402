"""Two policies on the same queries: how often one wins, and by how much."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from rlhf_jax.evaluation.expected_reward import masked_rewards
from rlhf_jax.evaluation.intervals import critical, share_interval
from rlhf_jax.feedback import Interval, wilson_interval

PRIOR_STD = 10.0  # of the length coefficient: finite, too, where length says it all
ITERATIONS = 50  # Newton's method; it needs about six


class WinRate(NamedTuple):
    """What `win_rate` finds."""

    rate: Interval  # a tie is half a win
    wins: float  # shares of the comparisons, over queries
    ties: float
    losses: float
    queries: int  # with a comparison
    comparisons: int


class LengthControlled(NamedTuple):
    """What `length_controlled_win_rate` finds."""

    rate: Interval  # at equal length
    length_coef: float  # φ: the log-odds of a response much longer than the other


def reward_outcomes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """All pairs of a query's responses by a reward: [r_j > r'_k] + ½[r_j = r'_k].

    No reference; their mean is the Mann–Whitney statistic of each query.

    Args:
      first: [N, K] float, rewards of one policy's responses.
      second: [N, L] float, of the other's to the same queries; none masked.

    Returns:
      [N, K·L] float64 outcomes for ``first``: 1 won, ½ a tie, 0 lost.

    Raises:
      ValueError: another number of queries, or rewards that are not finite.

    >>> reward_outcomes(np.array([[1.0, 2.0]]), np.array([[1.0]])).tolist()
    [[0.5, 1.0]]
    """
    (first, _), (second, _) = masked_rewards(first, None), masked_rewards(second, None)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} queries: expected the same")
    sign = np.sign(first[:, :, None] - second[:, None, :])
    return ((sign + 1) / 2).reshape(len(first), -1)


def win_rate(
    outcomes: np.ndarray, mask: np.ndarray | None = None, *, confidence: float = 0.95
) -> WinRate:
    """The share of comparisons that are won: ŵ = 1/N Σᵢ w̄ᵢ, ties one half.

    No reference for the rate; its interval is that of `share_interval` with a query a
    group, for comparisons of one query are not independent. Where no query has more
    than one, won or lost, it is Wilson's (1927, doi:10.2307/2276774), for then nothing
    is estimated but ŵ. A judge that is asked in both orders gives (v_ij + 1 − v_ji)/2
    (`feedback.preferred`), in which its liking for a position cancels;
    `feedback.first_bias` says how large that is.

    Args:
      outcomes: [N, M] float in [0, 1], of M comparisons on each of N queries: 1 won, ½
        a tie, 0 lost, or a judge's probability.
      mask: [N, M] bool, which of them there are; None: all. Queries count alike; one
        without a comparison has no part.
      confidence: of the interval.

    Returns:
      The rate and the shares of outcomes above, at and below ½; NaN without queries.

    Raises:
      ValueError: outcomes that are not [N, M], or outside 0 … 1 where the mask is True.

    >>> found = win_rate(np.array([[1.0, 1.0], [0.5, 1.0], [0.0, 1.0]]))
    >>> [round(x, 2) for x in found.rate], round(found.ties, 2)
    ([0.75, 0.19, 0.97], 0.17)
    """
    outcomes, mask, count = _outcomes(outcomes, mask)
    won = _by_query(outcomes, mask, count)
    n = len(won)
    rate = share_interval(won, np.ones(n), confidence=confidence)
    if n > 1 and count.max() == 1 and np.isin(won, (0.0, 1.0)).all():
        rate = wilson_interval(rate.value, n, confidence)
    share = lambda x: float(_by_query(x, mask, count).mean()) if n else np.nan
    shares = share(outcomes > 0.5), share(outcomes == 0.5), share(outcomes < 0.5)
    return WinRate(rate, *shares, n, int(count.sum()))


def length_controlled_win_rate(
    outcomes: np.ndarray,
    longer: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> LengthControlled:
    """The win rate that is left at equal length: σ(θ̂), of P(won) = σ(θ + φ tanh(d/s)).

    Dubois et al. 2024 (AlpacaEval 2), arXiv:2404.04475, eq. 1, with d = ``longer`` and
    s its standard deviation; without their third term, the difficulty of each query,
    which needs many policies. θ and φ are least in cross-entropy, of a judge's
    probabilities, too; φ ∼ N(0, 10²) a priori. The interval is that of θ with
    t_{N−1} and the jackknife over queries, (N−1)/N Σᵢ (θ̂₋ᵢ − θ̂)², each θ̂₋ᵢ by one step
    of Newton's method (Bell and McCaffrey 2002, "Bias reduction in standard errors for
    linear regression with multi-stage samples").

    Args:
      outcomes: [N, M] float in [0, 1], see `win_rate`.
      longer: [N, M] number, by how many tokens or characters the first policy's
        response is longer.
      mask: [N, M] bool, which comparisons there are; None: all. A query's comparisons
        weigh 1 together.
      confidence: of the interval.

    Returns:
      The rate at equal length and φ. Without any difference in length, or of one query,
      that is `win_rate`; where all outcomes are won, or all lost, nothing is known of
      φ, and it is that of `share_interval`. φ = 0 then.

    Raises:
      ValueError: shapes that differ, or see `win_rate`.

    >>> longer = np.array([[9], [8], [7], [-9], [-8], [1], [9], [-9]])
    >>> won = np.array([[1.0], [1], [1], [0], [0], [1], [0], [1]])
    >>> round(win_rate(won).rate.value, 2)
    0.62
    >>> round(length_controlled_win_rate(won, longer).rate.value, 2)
    0.61
    """
    outcomes, mask, count = _outcomes(outcomes, mask)
    longer, _ = masked_rewards(longer, mask, name="longer")
    if longer.shape != outcomes.shape:
        raise ValueError(f"longer {longer.shape} of outcomes {outcomes.shape}")
    plain = win_rate(outcomes, mask, confidence=confidence).rate
    scale = float(longer[mask].std()) if mask.any() else 0.0
    won = _by_query(outcomes, mask, count)
    queries = len(won)
    if queries < 2 or scale == 0:
        return LengthControlled(plain, 0.0)
    if plain.value in (0.0, 1.0):
        alike = share_interval(won, np.ones(queries), confidence=confidence)
        return LengthControlled(alike, 0.0)
    weight = np.where(mask, 1 / np.maximum(count, 1)[:, None], 0.0)
    features = np.stack([np.ones_like(longer), np.tanh(longer / scale)], axis=-1)
    params, errors = _fit_logistic(features, outcomes, weight)
    half = critical(queries - 1, confidence) * errors[0]
    rate, low, high = (float(expit(params[0] + side * half)) for side in (0, -1, 1))
    return LengthControlled(Interval(rate, low, high), float(params[1]))


def reward_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """By how much one expected reward is higher: the mean of dᵢ = r̄ᵢ − r̄'ᵢ, paired.

    Both policies answer the same queries, whose differences in difficulty cancel. The
    interval is the bootstrap-t of Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap", section 12.5: queries are drawn again, t* = (d̄* − d̄)/SE*, and
    d̄ − SE·t*_{1−α/2} … d̄ − SE·t*_{α/2}. Percentiles of d̄* alone are too narrow of few
    queries.

    Args:
      first: [N, K] float, rewards of one policy's responses; none masked.
      second: [N, L] float, of the other's to the same queries.
      rng: where the draws come from; moved on.
      resamples: how often queries are drawn.
      confidence: of the interval.

    Returns:
      The difference, in units of the reward, with its interval: NaN of one query.

    Raises:
      ValueError: another number of queries, or rewards that are not finite.

    >>> first, second = np.array([[3.0], [5.0], [8.0]]), np.array([[1.0], [4.0], [5.0]])
    >>> reward_difference(first, second, rng=np.random.default_rng(0)).value
    2.0
    """
    (first, _), (second, _) = masked_rewards(first, None), masked_rewards(second, None)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} queries: expected the same")
    paired = first.mean(axis=1) - second.mean(axis=1)
    n, mean = len(paired), float(paired.mean())
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    error = paired.std(ddof=1) / np.sqrt(n)
    drawn = paired[rng.integers(n, size=(resamples, n))]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(n)
    vary = errors > 1e-12 * np.abs(paired).max(initial=1e-300)  # not one query n times
    if not np.any(vary):
        return Interval(mean, mean, mean)
    t = (drawn.mean(axis=1)[vary] - mean) / errors[vary]
    tail = (1 - confidence) / 2
    high, low = (mean - error * q for q in np.quantile(t, [tail, 1 - tail]))
    return Interval(mean, float(low), float(high))


def _outcomes(
    outcomes: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(outcomes [N, M], mask [N, M], how many a query [N]), checked."""
    outcomes, mask = masked_rewards(outcomes, mask, name="outcomes")
    if np.any((outcomes < 0) | (outcomes > 1)):
        raise ValueError("outcomes: expected numbers from 0, lost, to 1, won")
    return outcomes, mask, mask.sum(axis=1)


def _by_query(x: np.ndarray, mask: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The mean of each query's comparisons, of the queries that have any."""
    total = np.sum(np.where(mask, x, 0.0), axis=1)
    return total[count > 0] / count[count > 0]


def _fit_logistic(
    features: np.ndarray, outcomes: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(θ and φ [2], their standard errors [2]) by Newton's method."""
    params, prior = np.zeros(2), np.array([0.0, PRIOR_STD**-2])

    def derivatives(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slope [N, 2] and curvature [N, 2, 2] of each query's cross-entropy."""
        expected = expit(features @ params)
        error, curved = weight * (expected - outcomes), expected * (1 - expected)
        slopes = np.einsum("nm,nmi->ni", error, features)
        return slopes, np.einsum("nm,nmi,nmj->nij", weight * curved, features, features)

    for _ in range(ITERATIONS):
        slopes, curvatures = derivatives(params)
        hessian = curvatures.sum(axis=0) + np.diag(prior)
        step = np.linalg.solve(hessian, slopes.sum(axis=0) + prior * params)
        # Of limited length: where the curve is flat a whole step overshoots.
        params = params - step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    slopes, curvatures = derivatives(params)
    without = curvatures.sum(axis=0) + np.diag(prior) - curvatures  # one query
    moved = np.einsum("nij,nj->ni", np.linalg.inv(without), slopes)
    n = np.sum(weight.sum(axis=1) > 0)
    return params, np.sqrt((n - 1) / n * np.sum(moved**2, axis=0))
