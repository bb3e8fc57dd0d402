"""Is a reward model right, where is it, and as often as it says?"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from rlhf_jax.evaluation.intervals import share_interval
from rlhf_jax.feedback import Interval


class MarginBin(NamedTuple):
    """Pairs whose margins lie between two numbers."""

    low: float
    high: float
    accuracy: Interval
    size: int  # pairs


class CalibrationBin(NamedTuple):
    """Predictions between two probabilities."""

    low: float
    high: float
    predicted: float  # mean of the predictions; NaN where there are none
    observed: float  # share that came true
    size: int  # predictions


class Calibration(NamedTuple):
    """What `calibration` finds."""

    bins: list[CalibrationBin]
    ece: float  # expected calibration error
    ece_by_chance: float  # of a model that is calibrated, with as many predictions
    brier: float


def pair_accuracy(differences: np.ndarray, groups: np.ndarray) -> Interval:
    """How often the preferred response scores higher: [d > 0] + ½[d = 0], its mean.

    No reference. Its interval is that of `share_interval`: the pairs of one ranking are
    not independent.

    Args:
      differences: [P] float, r(x, y₊) − r(x, y₋).
      groups: [P], which query or ranking a pair is of.

    Returns:
      A share; NaN without pairs.

    >>> pair_accuracy(np.array([0.5, -0.1, 2.0, 0.0]), np.array([0, 0, 1, 2])).value
    0.625
    """
    if not len(differences):
        return Interval(np.nan, np.nan, np.nan)
    _, group = np.unique(groups, return_inverse=True)
    return share_interval(np.bincount(group, _right(differences)), np.bincount(group))


def accuracy_by_margin(
    differences: np.ndarray,
    groups: np.ndarray,
    *,
    margins: np.ndarray | None = None,
    bins: int = 5,
) -> list[MarginBin]:
    """Accuracy of pairs that are close, and of pairs that are far apart.

    Touvron et al. 2023 (Llama 2), arXiv:2307.09288, table 8, have it by how much better
    people find the preferred response. Bins hold as many pairs each, but for ties.

    Args:
      differences: [P] float, r(x, y₊) − r(x, y₋).
      groups: [P], which query or ranking a pair is of, for the intervals.
      margins: [P] float, how far apart the two are by the truth or by people; None: by
        the model, the size of the difference.
      bins: at most; equal margins share one.

    Returns:
      Bins low < margin ≤ high, the first with its low end; none without pairs.

    >>> d, group = np.array([0.1, -0.2, 1.0, 2.0]), np.arange(4)
    >>> [(b.size, b.accuracy.value) for b in accuracy_by_margin(d, group, bins=2)]
    [(2, 0.5), (2, 1.0)]
    """
    differences = np.asarray(differences, np.float64)
    margins = np.abs(differences) if margins is None else np.asarray(margins)
    if not len(differences):
        return []
    edges = np.unique(
        np.quantile(margins, np.linspace(0, 1, bins + 1), method="inverted_cdf")
    )
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    place = np.clip(np.searchsorted(edges, margins) - 1, 0, len(edges) - 2)
    found = []
    for i in range(len(edges) - 1):
        own = place == i
        accuracy = pair_accuracy(differences[own], np.asarray(groups)[own])
        ends = float(edges[i]), float(edges[i + 1])
        found.append(MarginBin(*ends, accuracy, int(own.sum())))
    return found


def calibration(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    *,
    low: float = 0.0,
    bins: int = 10,
) -> Calibration:
    """Reliability curve, ECE = Σ_b n_b/n abs(p̄_b − ȳ_b) and Brier score 1/n Σ (p − y)².

    Guo et al. 2017, arXiv:1706.04599, eq. 3; Brier 1950. With few predictions ECE is
    above 0 of a calibrated model, too: ``ece_by_chance`` is its mean where outcomes are
    drawn with just these probabilities.

    Args:
      probabilities: p, [P] float.
      outcomes: y, [P] float, 1 came true, 0 did not, ½ a tie.
      low: least probability; bins of one width lie between it and 1.
      bins: how many.

    Returns:
      Bins low ≤ p < high, the last with its high end; NaN without predictions.

    Raises:
      ValueError: a probability outside [low, 1], or as many of one as of the other not.

    >>> found = calibration(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0, 1, 1, 1]))
    >>> round(found.ece, 3), round(found.brier, 3)
    (0.2, 0.175)
    """
    p, y = (np.asarray(x, np.float64) for x in (probabilities, outcomes))
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"probabilities {p.shape}, outcomes {y.shape}: expected [P]")
    if np.any((p < low) | (p > 1)):
        raise ValueError(f"probabilities: expected {low:g} to 1")
    if not len(p):
        return Calibration([], np.nan, np.nan, np.nan)
    edges = np.linspace(low, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    mean = lambda x: np.divide(
        np.bincount(place, x, bins), count, out=np.full(bins, np.nan), where=count > 0
    )
    error = lambda y: float(np.sum(np.abs(np.bincount(place, p - y, bins))) / len(p))
    rng = np.random.default_rng(0)
    by_chance = np.mean([error(rng.random(len(p)) < p) for _ in range(200)])
    ends = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    columns = zip(ends, mean(p).tolist(), mean(y).tolist(), count.tolist(), strict=True)
    rows = [CalibrationBin(*end, *others) for end, *others in columns]
    return Calibration(rows, error(y), float(by_chance), float(np.mean((p - y) ** 2)))


def pair_calibration(differences: np.ndarray, *, bins: int = 10) -> Calibration:
    """Is the response that scores higher preferred as often as σ(abs(r₁ − r₂)) says?

    Of Bradley and Terry 1952 (no arXiv number) is P(y₁ preferred) = σ(r₁ − r₂). The
    probability of the one that scores higher is ½ or more; that of the other is the
    rest, and says nothing else.

    Args:
      differences: [P] float, r(x, y₊) − r(x, y₋), y₊ the preferred.
      bins: from ½ to 1.

    Returns:
      See `calibration`.

    >>> found = pair_calibration(np.array([2.0, 2.0, 2.0, -2.0]), bins=5)
    >>> [(round(b.predicted, 2), b.observed) for b in found.bins if b.size]
    [(0.88, 0.75)]
    """
    sure = expit(np.abs(np.asarray(differences, np.float64)))
    return calibration(sure, _right(differences), low=0.5, bins=bins)


def _right(differences: np.ndarray) -> np.ndarray:
    """[P] float64: whether the preferred response scores higher, ½ where equal."""
    return (np.sign(np.asarray(differences, np.float64)) + 1) / 2
