"""What a reward model goes by: length, the truth on fresh samples, idle edits."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from rlhf_jax.evaluation.expected_reward import masked_rewards
from rlhf_jax.evaluation.intervals import bootstrap_interval, share_interval
from rlhf_jax.feedback import Interval


class GoldAgreement(NamedTuple):
    """What `gold_agreement` finds."""

    pairwise: Interval  # share of the pairs of a query's responses
    spearman: Interval  # over all responses
    spearman_within: Interval  # mean over queries
    pairs: int


class Robustness(NamedTuple):
    """What `edit_robustness` finds of one edit."""

    shift: float  # mean change of the score, in standard deviations of the scores
    change: float  # mean absolute change, likewise
    flips: Interval  # share of the pairs whose order changes with the edit of one side
    texts: int  # that the edit changed


# What does not make a review, an answer or a proof better or worse.
EDITS: Mapping[str, Callable[[str], str]] = {
    "space at the end": lambda text: text + " ",
    "newline at the end": lambda text: text + "\n",
    "every space twice": lambda text: text.replace(" ", "  "),
    "no full stop at the end": lambda text: text.rstrip().removesuffix(".").rstrip(),
    "first letter a capital": lambda text: _first_capital(text),
    "all letters capitals": lambda text: text.upper(),
}


def correlation(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    *,
    rank: bool,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Interval:
    """Pearson's correlation, or Spearman's ρ, which is that of the ranks.

    Spearman 1904, doi:10.2307/1412159. Of scores and lengths, or of their differences
    over pairs: a reward that pays for length is bought with it (Singhal et al. 2023,
    arXiv:2310.03716). The interval is a bootstrap over groups.

    Args:
      x: [P] float.
      y: [P] float.
      groups: [P], which query a row is of.
      rank: Spearman's; equal numbers share their mean rank.
      rng: of the bootstrap; moved on.
      resamples: of the bootstrap.

    Returns:
      −1 … 1; NaN where x or y does not vary.

    >>> x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])
    >>> rng = np.random.default_rng(0)
    >>> round(correlation(x, y, np.arange(4), rank=False, rng=rng).value, 3)
    0.984
    >>> round(correlation(x, y, np.arange(4), rank=True, rng=rng).value, 3)
    1.0
    """
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    of = _spearman if rank else _pearson
    return bootstrap_interval(
        lambda rows: of(x[rows], y[rows]), groups, rng=rng, resamples=resamples
    )


def gold_agreement(
    scores: np.ndarray,
    gold: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> GoldAgreement:
    """How far scores order fresh samples of a policy as the truth does.

    Gao et al. 2022, arXiv:2210.10760, for the gold reward. A policy leaves the texts
    that the reward model learned from: what counts in training is the order of what it
    says now.

    Args:
      scores: [N, K] float, of K responses to each of N queries; none masked.
      gold: [N, K] float, their true worth.
      rng: of the bootstraps over queries; moved on.
      resamples: of the bootstraps.

    Returns:
      Pairs of one query's responses that gold tells apart, those of equal scores half
      right; and Spearman's ρ over all responses, and within each query.

    >>> scores, gold = np.array([[1.0, 2, 3], [1, 2, 3]]), np.array([[1.0, 2, 3]] * 2)
    >>> found = gold_agreement(scores, gold, rng=np.random.default_rng(0))
    >>> found.pairwise.value, found.pairs
    (1.0, 6)
    """
    (scores, _), (gold, _) = masked_rewards(scores, None), masked_rewards(gold, None)
    n, k = scores.shape
    first, second = np.triu_indices(k, 1)
    better = np.sign(gold[:, first] - gold[:, second])
    apart = better * (scores[:, first] - scores[:, second])
    told = better != 0
    points = np.sum(np.where(told, (np.sign(apart) + 1) / 2, 0), axis=1)
    row = np.repeat(np.arange(n), k)
    drawn = {"rng": rng, "resamples": resamples}
    rho = np.array([_spearman(a, b) for a, b in zip(scores, gold, strict=True)])
    mean = lambda rows: float(np.nanmean(rho[rows])) if _any(rho[rows]) else np.nan
    return GoldAgreement(
        share_interval(points, told.sum(axis=1)),
        correlation(scores.ravel(), gold.ravel(), row, rank=True, **drawn),
        bootstrap_interval(mean, np.arange(n), **drawn),
        int(told.sum()),
    )


def edit_robustness(
    scores: np.ndarray, edited: np.ndarray, changed: np.ndarray, groups: np.ndarray
) -> Robustness:
    """What an edit that must not matter does to the scores of pairs, and their order.

    No reference; after CheckList's invariance tests, Ribeiro et al. 2020,
    arXiv:2005.04118. The order is that of a pair with one side edited, for a policy can
    do so alone: an edit that makes every score higher by as much is worth something.

    Args:
      scores: [P, 2] float, of both responses of each pair.
      edited: [P, 2] float, of the same responses after the edit.
      changed: [P, 2] bool, whether the edit changed the text; others have no part.
      groups: [P], which query or ranking a pair is of, for the interval.

    Returns:
      Shift and change in standard deviations of ``scores``; NaN where no text changed
      or all scores are equal. Pairs of equal scores cannot flip and are left out.

    >>> scores = np.array([[1.0, 0.0], [2.0, 1.9]])
    >>> found = edit_robustness(scores, scores + 0.2, scores < 9, np.arange(2))
    >>> round(found.shift, 2), found.flips.value
    (0.25, 0.25)
    """
    scores, edited = (np.asarray(x, np.float64) for x in (scores, edited))
    spread, moved = scores.std() if len(scores) else 0.0, (edited - scores)[changed]
    relative = lambda x: float(x.mean() / spread) if len(x) and spread > 0 else np.nan
    first, second = scores.T
    order = np.sign(first - second)
    after = np.stack([edited[:, 0] - second, first - edited[:, 1]], axis=1)
    counted = changed & (order != 0)[:, None]
    flipped = counted & (np.sign(after) != order[:, None])
    _, group = np.unique(groups, return_inverse=True)
    total = lambda x: np.bincount(group, x.sum(axis=1))
    flips = share_interval(total(flipped), total(counted))
    return Robustness(
        relative(moved), relative(np.abs(moved)), flips, int(changed.sum())
    )


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
    return float(np.sum(x * y) / scale) if scale > 0 else np.nan


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return _pearson(rankdata(x), rankdata(y))


def _any(x: np.ndarray) -> bool:
    return bool(np.any(np.isfinite(x)))


def _first_capital(text: str) -> str:
    start = len(text) - len(text.lstrip())
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]
