"""pass@k: whether one of k responses is right."""

from typing import Any

import numpy as np
from scipy.special import gammaln


def pass_at_k(correct: Any, total: Any, k: int) -> np.ndarray:
    """The chance that one of k responses is right: 1 − C(n − c, k)/C(n, k).

    Chen et al. 2021, arXiv:2107.03374, eq. 1: without bias from n ≥ k responses of
    which c are right, which 1 − (1 − c/n)^k is not. `ops.expected_best_of` is the same
    for other scores than right and wrong, with the same n everywhere. The mean over
    queries with its interval: `intervals.mean_interval`.

    Args:
      correct: c, [N] int, right responses to each query.
      total: n, [N] int or one for all, responses to each, k or more.
      k: 1 or more.

    Returns:
      [N] float64, a probability a query; no mask: n counts what there is.

    Raises:
      ValueError: c outside 0 … n, or k outside 1 … n.

    >>> pass_at_k(np.array([0, 1, 2]), 4, k=2).round(3).tolist()
    [0.0, 0.5, 0.833]
    """
    correct, total = np.broadcast_arrays(np.asarray(correct), np.asarray(total))
    if np.any((correct < 0) | (correct > total)):
        raise ValueError("correct: expected 0 to total")
    if k < 1 or np.any(total < k):
        raise ValueError(
            f"k = {k}: expected 1 to the least number of responses, {total.min()}"
        )
    wrong = total - correct
    some = wrong >= k  # else any k of them have a right one
    log_choose = lambda n: gammaln(n + 1) - gammaln(n - k + 1)
    none_right = np.exp(log_choose(np.where(some, wrong, k)) - log_choose(total))
    return np.where(some, 1 - none_right, 1.0)
