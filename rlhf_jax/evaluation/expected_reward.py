"""What a policy's responses are worth: E_x E_{y∼π}[r(x, y)], estimated or exact."""

from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.intervals import critical, mean_interval
from rlhf_jax.feedback import Interval


class ExpectedReward(NamedTuple):
    """What `expected_reward` finds, in units of the reward."""

    sampled: Interval  # the queries are a sample of many
    fixed: Interval  # the queries are all there are
    standard_error: float  # of the queries as a sample
    query_means: np.ndarray  # [N] float64; NaN without a response
    between: float  # variance of E_y[r(x, y)] over queries; NaN where not known
    within: float  # mean over queries of the variance of r(x, y) over responses
    queries: int  # with a response
    responses: int


class ExactReward(NamedTuple):
    """What `exact_expected_reward` finds."""

    value: np.ndarray  # [N] float64, Σ_y π(y|x) r(x, y), in units of the reward
    mass: np.ndarray  # [N] float64, Σ_y π(y|x): 1 where the set has all responses


def expected_reward(
    rewards: np.ndarray, mask: np.ndarray | None = None, *, confidence: float = 0.95
) -> ExpectedReward:
    """Monte Carlo: r̂ = 1/N Σᵢ r̄ᵢ with r̄ᵢ = 1/Kᵢ Σⱼ r(xᵢ, yᵢⱼ), yᵢⱼ ∼ π(· | xᵢ).

    No reference. With r(xᵢ, yᵢⱼ) = μ + aᵢ + eᵢⱼ, where a varies with the query
    (variance σ²_a) and e with the response (σ²_e), the query means are independent with
    Var r̄ᵢ = σ²_a + σ²_e/Kᵢ. Their variance over queries, s²_r̄ = Σ (r̄ᵢ − r̂)²/(N − 1),
    estimates just that, whatever the shares of the two. So

    * queries sampled: SE² = s²_r̄/N covers both sources, r̂ ± t_{N−1} SE;
    * queries fixed: only responses vary, SE² = 1/N² Σᵢ s²ᵢ/Kᵢ, with the degrees of
      freedom of Satterthwaite 1946, doi:10.2307/3002019;
    * between queries σ̂²_a = max(0, s²_r̄ − σ̂²_e · mean(1/Kᵢ)), within them
      σ̂²_e = mean s²ᵢ.

    Args:
      rewards: [N, K] float, of K responses to each of N queries.
      mask: [N, K] bool, which responses there are; None: all. Queries count alike,
        however many responses they have; a query without any has no part.
      confidence: of the intervals.

    Returns:
      The estimate in both senses. What cannot be told is NaN: ``sampled`` of one query,
      ``fixed`` where a query has a single response, ``within`` where all have.

    Raises:
      ValueError: rewards that are not [N, K] or not finite where the mask is True.

    >>> found = expected_reward(np.array([[1.0, 3.0], [4.0, 6.0], [6.0, 8.0]]))
    >>> round(found.sampled.value, 2), round(found.standard_error, 2)
    (4.67, 1.45)
    >>> round(found.within, 2), round(found.between, 2)
    (2.0, 5.33)
    """
    rewards, mask = masked_rewards(rewards, mask)
    count = mask.sum(axis=1)
    total = np.sum(rewards, axis=1)
    means = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    asked = count > 0
    rewards, mask, count = rewards[asked], mask[asked], count[asked]
    sampled = mean_interval(means[asked], confidence=confidence)
    n = len(count)
    centred = np.where(mask, rewards - means[asked][:, None], 0.0)
    freedom = count - 1
    variance = np.divide(
        np.sum(centred**2, axis=1), freedom, out=np.full(n, np.nan), where=freedom > 0
    )
    spread = variance[freedom > 0]
    within = float(spread.mean()) if len(spread) else np.nan
    over_queries = float(means[asked].var(ddof=1)) if n > 1 else np.nan
    apart = over_queries - within * float(np.mean(1 / count)) if n else np.nan
    return ExpectedReward(
        sampled,
        _fixed(sampled.value, variance / count, freedom, confidence),
        float(np.sqrt(over_queries / n)) if n else np.nan,
        means,
        float(np.maximum(apart, 0.0)),
        within,
        n,
        int(count.sum()),
    )


def predicted_standard_error(
    found: ExpectedReward, *, queries: float, responses: float
) -> float:
    """What more of either would help: SE² = (σ̂²_a + σ̂²_e/K)/N.

    No reference. With σ̂²_a far above σ̂²_e/K more responses to the same queries help
    little, and more queries help as √N.

    Args:
      found: by `expected_reward`, from two or more responses a query.
      queries: N.
      responses: K, of each.

    Returns:
      The standard error to be expected, queries sampled, in units of the reward.

    >>> found = expected_reward(np.array([[1.0, 3.0], [4.0, 6.0], [6.0, 8.0]]))
    >>> round(predicted_standard_error(found, queries=3, responses=2), 2)
    1.45
    >>> round(predicted_standard_error(found, queries=3, responses=200), 2)
    1.33
    """
    return float(np.sqrt((found.between + found.within / responses) / queries))


def exact_expected_reward(
    logprobs: np.ndarray, rewards: np.ndarray, mask: np.ndarray | None = None
) -> ExactReward:
    """The expectation itself: Σ_y π(y|x) r(x, y) over responses that can be listed.

    No reference. What the set leaves out has the mass 1 − Σ_y π(y|x): rewards known to
    lie in [a, b] bound the expectation to value + (1 − mass)·[a, b].

    Args:
      logprobs: [N, R] float nats, log π(y|x) of R different responses to each query.
      rewards: [N, R] float, r(x, y).
      mask: [N, R] bool, which of them there are; None: all.

    Returns:
      Value and mass of each query. The value is not divided by the mass; 0 and 0 where
      all is masked.

    Raises:
      ValueError: shapes that differ, numbers that are not finite where the mask is
        True, or a mass above 1, which a response that is there twice would make.

    >>> logprobs = np.log([[0.5, 0.25, 0.125]])
    >>> found = exact_expected_reward(logprobs, np.array([[1.0, 2.0, 8.0]]))
    >>> found.value.tolist(), found.mass.tolist()
    ([2.0], [0.875])
    """
    rewards, there = masked_rewards(rewards, mask)
    logprobs, _ = masked_rewards(logprobs, mask, name="logprobs")
    if logprobs.shape != rewards.shape:
        raise ValueError(f"logprobs {logprobs.shape} of rewards {rewards.shape}")
    shares = np.where(there, np.exp(logprobs), 0.0)
    mass = shares.sum(axis=1)
    if np.any(mass > 1 + 1e-4):  # float32 log-probs of many tokens are not exact
        row = int(np.argmax(mass))
        raise ValueError(
            f"query {row}: its responses have probability {mass[row]:.4f} together, "
            "expected 1 at most: is one there twice?"
        )
    return ExactReward(np.sum(shares * rewards, axis=1), mass)


def masked_rewards(
    values: np.ndarray, mask: np.ndarray | None, *, name: str = "rewards"
) -> tuple[np.ndarray, np.ndarray]:
    """(values [N, K] float64, 0 where masked; mask [N, K] bool), checked.

    No reference.

    Raises:
      ValueError: another shape, or a number that is not finite where the mask is True.

    >>> masked_rewards(np.array([[1.0, np.nan]]), np.array([[True, False]]))[0].tolist()
    [[1.0, 0.0]]
    """
    values = np.asarray(values, np.float64)
    there = np.ones(values.shape, bool) if mask is None else np.asarray(mask, bool)
    if values.ndim != 2 or there.shape != values.shape:
        raise ValueError(
            f"{name} {values.shape} and mask {there.shape}: expected [N, K] of both, "
            "a row a query"
        )
    values = np.where(there, values, 0.0)
    if not np.all(np.isfinite(values)):
        row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"{name}: query {row}, response {column} is {values[row, column]}, "
            "expected a finite number, or False in the mask"
        )
    return values, there


def _fixed(
    value: float, variances: np.ndarray, freedom: np.ndarray, confidence: float
) -> Interval:
    """Of these queries alone: variances [N] of their means, NaN where not known."""
    n, total = len(variances), variances.sum()
    if not n or np.isnan(total):
        return Interval(value, np.nan, np.nan)
    if total == 0:  # no response differs from another
        return Interval(value, value, value)
    half = critical(total**2 / np.sum(variances**2 / freedom), confidence)
    half *= np.sqrt(total) / n
    return Interval(value, float(value - half), float(value + half))
