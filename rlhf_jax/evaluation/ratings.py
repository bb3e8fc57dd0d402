"""Ratings of several policies from pairwise comparisons, with their uncertainty."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from rlhf_jax.evaluation.intervals import critical
from rlhf_jax.feedback import Interval

ELO_SCALE = 400 / math.log(10)  # Elo points a nat: 400 of them are odds of 10 to 1
ELO_MEAN = 1000.0
ITERATIONS = 100


class Ratings(NamedTuple):
    """What `bradley_terry` finds."""

    strengths: np.ndarray  # [M] float64 nats, mean 0
    covariance: np.ndarray  # [M, M] float64 nats²
    queries: int

    def win_probability(self) -> np.ndarray:
        """[M, M]: σ(θᵢ − θⱼ), the chance that i beats j."""
        return expit(self.strengths[:, None] - self.strengths[None, :])


def bradley_terry(points: np.ndarray, *, prior_ties: float = 1.0) -> Ratings:
    """Strengths θ for which P(i beats j) = σ(θᵢ − θⱼ), by maximum likelihood.

    Bradley and Terry 1952, doi:10.2307/2334029; a tie is half a win for each. With
    n_ij = w_ij + w_ji, Σⱼ w_ij = Σⱼ n_ij σ(θᵢ − θⱼ) by Newton's method. The covariance
    is H⁻ (N/(N−1) Σ_q g_q g_qᵀ) H⁻ over queries (Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13): comparisons of one query are not independent.

    Args:
      points: [N, M, M] float ≥ 0, w_ij: what policy i won of j on each query, a tie
        being ½ for both; the diagonal is not looked at. Queries weigh as many
        comparisons as they have.
      prior_ties: ties added to each pair, so that a policy that always wins has a
        finite strength; 0 adds none.

    Returns:
      Strengths that sum to 0, and their covariance; NaN covariance of one query.

    Raises:
      ValueError: not [N, M, M] with two policies or more, negative or not finite; or
        without prior_ties a strength that is not finite, for some policies won all
        that they played against the others, or never met them.

    >>> won = np.array([[[0.0, 3.0], [1.0, 0.0]]] * 4)
    >>> found = bradley_terry(won, prior_ties=0.0)
    >>> found.strengths.round(3).tolist()  # odds of 3 to 1: log 3 apart
    [0.549, -0.549]
    """
    points = np.asarray(points, np.float64)
    n, m = points.shape[0], points.shape[-1]
    if points.shape != (n, m, m) or m < 2 or n < 1:
        raise ValueError(f"points {points.shape}: expected [N, M, M], M of 2 or more")
    points = np.where(np.eye(m, dtype=bool)[None], 0.0, points)
    if not np.all(np.isfinite(points)) or np.any(points < 0):
        raise ValueError("points: expected finite numbers, 0 or more")
    prior = prior_ties / 2 * (1 - np.eye(m))
    won = points.sum(axis=0) + prior
    _check_connected(won)
    strengths = np.zeros(m)
    for _ in range(ITERATIONS):
        slope, hessian = _derivatives(won, strengths)
        step = np.linalg.pinv(hessian, hermitian=True) @ slope
        # Of limited length: where the curve is flat a whole step overshoots.
        strengths = strengths + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    slopes = np.stack([_derivatives(own, strengths)[0] for own in points])
    middle = slopes.T @ slopes * (n / (n - 1) if n > 1 else np.nan)
    inverse = np.linalg.pinv(_derivatives(won, strengths)[1], hermitian=True)
    return Ratings(strengths - strengths.mean(), inverse @ middle @ inverse, n)


def elo_ratings(ratings: Ratings, *, confidence: float = 0.95) -> list[Interval]:
    """The strengths on Elo's scale: 1000 + 400/ln 10 · θᵢ, each with its interval.

    Elo 1978, "The Rating of Chessplayers, Past and Present", for the scale. The mean of
    the policies is 1000; a policy 400 points above another wins 10 of 11. Intervals are
    of the distance from that mean: θᵢ ± t_{N−1} √Σᵢᵢ.

    Args:
      ratings: of `bradley_terry`.
      confidence: of the intervals.

    Returns:
      One a policy, in points.

    >>> won = np.array([[[0.0, 10.0], [1.0, 0.0]]] * 2)
    >>> first, second = elo_ratings(bradley_terry(won, prior_ties=0.0))
    >>> round(first.value - second.value)
    400
    """
    t = critical(ratings.queries - 1, confidence) if ratings.queries > 1 else np.nan
    errors = t * np.sqrt(np.diag(ratings.covariance))
    return [
        Interval(*(float(ELO_MEAN + ELO_SCALE * x) for x in (s, s - e, s + e)))
        for s, e in zip(ratings.strengths, errors, strict=True)
    ]


def _derivatives(
    won: np.ndarray, strengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slope [M] of the log-likelihood, and minus its curvature [M, M]."""
    played = won + won.T
    expected = expit(strengths[:, None] - strengths[None, :])
    slope = np.sum(won - played * expected, axis=1)
    curved = played * expected * (1 - expected)
    return slope, np.diag(curved.sum(axis=1)) - curved


def _check_connected(won: np.ndarray) -> None:
    """Ford 1957: each group of policies has won something from the others."""
    reach = (won > 0) | np.eye(len(won), dtype=bool)
    for _ in range(len(won)):
        reach = reach @ reach
    if not np.all(reach):
        i, j = np.argwhere(~reach)[0]
        raise ValueError(
            f"policy {i} and those that it won from have won nothing from policy {j}: "
            "no finite strengths fit; expected prior_ties above 0"
        )
