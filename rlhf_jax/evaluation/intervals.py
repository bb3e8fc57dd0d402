"""Intervals of means and shares whose observations come in groups, one a query.

Responses to one query are not independent of one another: queries are. Every interval
here is over queries, however many responses each of them has.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from rlhf_jax.feedback import Interval
from rlhf_jax.feedback.agreement import between


def mean_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Student's interval of a mean: x̄ ± t_{n−1} s/√n, s² = Σ (xᵢ − x̄)²/(n − 1).

    Student 1908, doi:10.1093/biomet/6.1.1.

    Args:
      values: [N] float, independent of one another; none masked.
      confidence: of the interval.

    Returns:
      The mean with its interval, which is NaN of fewer than two values.

    >>> [round(x, 2) for x in mean_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.48, 4.48]
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < 2:
        mean = float(values[0]) if n else np.nan
        return Interval(mean, np.nan, np.nan)
    half = critical(n - 1, confidence) * values.std(ddof=1) / np.sqrt(n)
    mean = values.mean()
    return Interval(float(mean), float(mean - half), float(mean + half))


def share_interval(
    points: np.ndarray, trials: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """A share over groups: Wilson's interval with as many trials as the groups allow.

    p = Σ sᵢ/Σ nᵢ. Groups vary, and so var p = N/(N−1) Σ (sᵢ − p nᵢ)²/(Σ nᵢ)², which is
    that of n* = p(1−p)/var p independent trials; Wilson's interval of n* trials with
    t_{N−1} in the place of z. Kish 1965, "Survey Sampling", for the effective trials;
    Korn and Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", for intervals of them. It
    stays within 0 … 1, and has a width where all trials end alike: n* = N then.

    Args:
      points: [N] float, sᵢ: what group i won, a tie being half a point.
      trials: [N] number, nᵢ; a group without trials has no part.
      confidence: of the interval.

    Returns:
      The share with its interval: NaN without trials, 0 … 1 of a single group.

    Raises:
      ValueError: points below 0 or above the trials.

    >>> won, played = np.array([2.0, 1.0, 1.5, 2.0]), np.array([2, 2, 2, 2])
    >>> [round(x, 2) for x in share_interval(won, played)]
    [0.81, 0.35, 0.97]
    """
    points, trials = (np.asarray(x, np.float64) for x in (points, trials))
    if np.any((points < 0) | (points > trials)):
        raise ValueError("points: expected 0 to the trials of each group")
    points, trials = points[trials > 0], trials[trials > 0]
    n, total = len(trials), trials.sum()
    if n < 2:
        share = float(points.sum() / total) if n else np.nan
        return Interval(share, *((0.0, 1.0) if n else (np.nan, np.nan)))
    p = points.sum() / total
    variance = n / (n - 1) * np.sum((points - p * trials) ** 2) / total**2
    binomial = p * (1 - p)
    inverse = variance / binomial if variance > 0 and binomial > 0 else 1 / n
    t2 = critical(n - 1, confidence) ** 2 * inverse
    half = np.sqrt(t2 * binomial + t2**2 / 4)
    ends = ((p + t2 / 2 + side * half) / (1 + t2) for side in (-1.0, 1.0))
    low, high = (float(np.clip(end, 0.0, 1.0)) for end in ends)  # but for rounding
    return Interval(float(p), low, high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """A number with the percentiles of its bootstrap over groups.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3. Groups
    are drawn with replacement, each with all of its rows. Of few groups it is too
    narrow: `mean_interval` and `share_interval` are better where they apply.

    Args:
      statistic: of the rows whose indices it is given.
      groups: [P], the group of each row.
      rng: where the draws come from; moved on.
      resamples: how often groups are drawn.
      confidence: of the interval.

    Returns:
      The statistic of all rows with its interval; draws where it is NaN are left out.

    >>> x, rng = np.arange(8.0), np.random.default_rng(0)
    >>> found = bootstrap_interval(lambda rows: x[rows].mean(), x // 2, rng=rng)
    >>> found.value, found.low < 2.5, found.high > 4.5
    (3.5, True, True)
    """
    _, group = np.unique(groups, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    rows = np.split(order, np.cumsum(sizes)[:-1])
    n = len(rows)
    value = float(statistic(np.arange(len(group))))
    draws = [
        statistic(np.concatenate([rows[i] for i in rng.integers(n, size=n)]))
        for _ in range(resamples)
    ]
    return between(value, np.asarray(draws, np.float64), confidence)


def critical(freedom: float, confidence: float) -> float:
    """The t quantile of a two-sided interval; NaN without freedom. No reference.

    >>> round(critical(7, 0.95), 3)
    2.365
    """
    return float(student.isf((1 - confidence) / 2, freedom))
