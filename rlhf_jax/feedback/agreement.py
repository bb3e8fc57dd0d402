"""How far annotators agree: Krippendorff's alpha, percent, each against the others.

Intervals are of a bootstrap over items (Zapf et al. 2016,
doi:10.1186/s12874-016-0200-9): items are drawn again with all their votes, and
everything is computed anew.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import norm

from rlhf_jax.feedback.votes import Votes

Level = Literal["nominal", "ordinal", "interval"]


class Interval(NamedTuple):
    """A number and where it could as well lie; NaN where it is not defined."""

    value: float
    low: float
    high: float


class Agreement(NamedTuple):
    """What `measure_agreement` finds."""

    alpha: Interval
    percent: Interval  # share of the pairs of votes on one unit that are equal
    each: list[Interval]  # of each annotator: the same, of pairs with own votes


def krippendorff_alpha(votes: Votes, *, level: Level) -> float:
    """Krippendorff's alpha: α = 1 − Dₒ/Dₑ, observed over expected disagreement.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability" (no arXiv number),
    section D. With n_uc votes for value c on unit u, m_u = Σ_c n_uc, those with m_u ≥ 2
    make the coincidences o_ck = Σ_u n_uc (n_uk − [c = k])/(m_u − 1), n_c = Σ_k o_ck,
    n = Σ_c n_c;

    Dₒ = Σ o_ck δ²_ck / n and Dₑ = Σ n_c n_k δ²_ck / (n (n − 1)), where δ²_ck is
    [c ≠ k] for nominal values, (c − k)² for interval ones, and for ordinal ones
    (Σ_{c ≤ g ≤ k} n_g − (n_c + n_k)/2)², which is the interval between mid-ranks.

    Args:
      votes: who said what; units with one vote say nothing about agreement.
      level: of measurement of the values.

    Returns:
      1 for perfect agreement, 0 for what chance would give, less for worse; NaN where
      all votes are equal, for then chance agrees, too, and alpha is not defined.

    Raises:
      ValueError: an unknown level, or no unit with two votes.

    >>> from rlhf_jax.feedback import table_votes
    >>> table = np.array([[1, 1], [1, 1], [2, 2], [2, 1]])
    >>> round(krippendorff_alpha(table_votes(table), level="nominal"), 3)
    0.533
    """
    values, together = _coincidences(votes)
    return float(_alpha(np.sum(together, axis=0), values, level))


def measure_agreement(
    votes: Votes,
    *,
    level: Level,
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Agreement:
    """Alpha, percent and each annotator against the others, with intervals over items.

    Zapf et al. 2016, doi:10.1186/s12874-016-0200-9, for the bootstrap: percentiles over
    items drawn with replacement. An annotator's interval is over the own items. Percent
    agreement takes all pairs of votes on a unit alike and knows nothing of chance.

    Args:
      votes: who said what.
      level: see ``krippendorff_alpha``; percent counts votes that are equal.
      rng: where the draws come from; moved on.
      resamples: how often items are drawn.
      confidence: of the intervals.

    Returns:
      The three, with NaN for an annotator who shares no unit with another.

    Raises:
      ValueError: see ``krippendorff_alpha``.

    >>> from rlhf_jax.feedback import table_votes
    >>> votes = table_votes(np.array([[1, 1, 2], [2, 2, 2], [1, 1, 1], [2, 2, 1]]))
    >>> found = measure_agreement(votes, level="nominal", rng=np.random.default_rng(0))
    >>> round(found.percent.value, 3), [round(x.value, 3) for x in found.each]
    (0.667, [0.75, 0.75, 0.5])
    """
    alpha = alpha_interval(
        votes, level=level, rng=rng, resamples=resamples, confidence=confidence
    )
    size = np.bincount(votes.unit, minlength=len(votes.item))[votes.unit]
    agreeing, compared = _same(votes) - 1, size - 1
    item = votes.item[votes.unit]
    share = lambda kept: _share(
        agreeing[kept], compared[kept], item[kept], rng, resamples, confidence
    )
    who = range(votes.annotator.max() + 1)
    return Agreement(
        alpha,
        share(np.full(len(item), True)),
        [share(votes.annotator == a) for a in who],
    )


def alpha_interval(
    votes: Votes,
    *,
    level: Level,
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Alpha with its interval over items, as ``measure_agreement`` has it.

    Zapf et al. 2016, doi:10.1186/s12874-016-0200-9.

    >>> from rlhf_jax.feedback import table_votes
    >>> votes = table_votes(np.array([[1, 1], [1, 1], [2, 2], [2, 1]]))
    >>> found = alpha_interval(votes, level="nominal", rng=np.random.default_rng(0))
    >>> round(found.value, 3)
    0.533
    """
    values, together = _coincidences(votes)
    weights = item_weights(len(together), rng, resamples)
    alpha = _alpha(np.sum(together, axis=0), values, level)
    draws = _alpha(np.tensordot(weights, together, 1), values, level)
    return between(float(alpha), draws, confidence)


def item_weights(
    count: int, rng: np.random.Generator, resamples: int = 1000
) -> np.ndarray:
    """[resamples, count]: how often a bootstrap draws each item. No reference.

    >>> item_weights(5, np.random.default_rng(0), 3).sum(axis=1).tolist()
    [5, 5, 5]
    """
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples)


def between(value: float, draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """A value with the percentiles of its bootstrap; NaN draws are left out.

    No reference.

    >>> between(10.0, np.arange(21.0), 0.5)
    Interval(value=10.0, low=5.0, high=15.0)
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(value, np.nan, np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    return Interval(value, low, high)


def wilson_interval(share: float, trials: float, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).

    Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Args:
      share: p, of the trials.
      trials: n; p n need not be whole, as where an item is right in part.
      confidence: of the interval.

    Returns:
      The share and its interval, NaN without trials.

    >>> [round(x, 3) for x in wilson_interval(0.8, 10)]
    [0.8, 0.49, 0.943]
    """
    if not trials:
        return Interval(np.nan, np.nan, np.nan)
    z2 = float(norm.isf((1 - confidence) / 2)) ** 2 / trials
    half = np.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = ((share + z2 / 2 + side * half) / (1 + z2) for side in (-1.0, 1.0))
    return Interval(share, float(low), float(high))


def _share(
    agreeing: np.ndarray,
    compared: np.ndarray,
    item: np.ndarray,
    rng: np.random.Generator,
    resamples: int,
    confidence: float,
) -> Interval:
    """Σ agreeing / Σ compared, with its interval over items."""
    kept = compared > 0
    if not np.any(kept):
        return Interval(np.nan, np.nan, np.nan)
    _, item = np.unique(item[kept], return_inverse=True)
    top, bottom = np.bincount(item, agreeing[kept]), np.bincount(item, compared[kept])
    weights = item_weights(len(top), rng, resamples)
    value = float(top.sum() / bottom.sum())
    return between(value, (weights @ top) / (weights @ bottom), confidence)


def _counts(votes: Votes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [V], which of them a vote is [M], how many a unit has of each [U, V]."""
    values, vote = np.unique(votes.value, return_inverse=True)
    shape = (len(votes.item), len(values))
    counts = np.bincount(votes.unit * shape[1] + vote, minlength=shape[0] * shape[1])
    return values, vote, counts.reshape(shape)


def _same(votes: Votes) -> np.ndarray:
    """[M] int: how many votes on its unit are equal to a vote, itself among them."""
    _, vote, counts = _counts(votes)
    return counts[votes.unit, vote]


def _coincidences(votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """Values [V] and coincidences [items, V, V] of those items that have any."""
    values, _, counts = _counts(votes)
    size = counts.sum(axis=1)
    paired = size >= 2
    if not np.any(paired):
        raise ValueError(
            "no unit has two votes: agreement needs items that several annotators "
            "have judged"
        )
    counts, size = counts[paired].astype(float), size[paired]
    _, item = np.unique(votes.item[paired], return_inverse=True)
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs -= counts[:, :, None] * np.eye(len(values))[None]
    together = np.zeros((item.max() + 1, len(values), len(values)))
    np.add.at(together, item, pairs / (size - 1)[:, None, None])
    return values, together


def _alpha(together: np.ndarray, values: np.ndarray, level: Level) -> np.ndarray:
    """Alpha of coincidences [..., V, V]."""
    of_value = together.sum(axis=-1)
    match level:
        case "nominal":
            delta = 1 - np.eye(len(values))
        case "ordinal" | "interval":
            mid_ranks = np.cumsum(of_value, axis=-1) - of_value / 2
            at = mid_ranks if level == "ordinal" else values
            delta = (at[..., :, None] - at[..., None, :]) ** 2
        case _:
            raise ValueError(
                f"level = {level!r}: expected nominal, ordinal or interval"
            )
    by_chance = of_value[..., :, None] * of_value[..., None, :] * delta
    observed = np.sum(together * delta, axis=(-2, -1))
    expected = by_chance.sum(axis=(-2, -1)) / (of_value.sum(axis=-1) - 1)
    undefined = expected <= 0
    return np.where(undefined, np.nan, 1 - observed / np.where(undefined, 1, expected))
