"""Best-of-n: what scores are good for without a gradient."""

import math

import chex
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array


def best_of_n(scores: Array, *, group_size: int) -> Array:
    """The row of each prompt's best response: argmaxᵢ sᵢ over its group.

    Stiennon et al. 2020, arXiv:2009.01325, §3.1 (as a policy); supervised fine-tuning
    on the chosen rows is rejection sampling, or expert iteration.

    Args:
      scores: [B] float, one a response; rows of a group are adjacent.
      group_size: G = n, responses a prompt; divides B.

    Returns:
      [B / G] int32, rows 0 … B − 1; the first of several best. No mask: every row
      counts.

    Raises:
      ValueError: if group_size is below 1 or does not divide B.

    >>> best_of_n(jnp.array([1.0, 3.0, 5.0, 5.0]), group_size=2).tolist()
    [1, 2]
    """
    groups = _groups(scores, group_size)
    first = group_size * jnp.arange(groups.shape[0], dtype=jnp.int32)
    return first + jnp.argmax(groups, axis=1).astype(jnp.int32)


def best_of_n_kl(n: int | Array) -> Array:
    """How far best-of-n is from the policy it draws from, at most: log n − (n−1)/n.

    The KL divergence of the chosen response; exact where no two responses score the
    same or are the same, an upper bound in general: Beirami et al. 2024,
    arXiv:2401.01879.

    Args:
      n: responses a prompt, 1 or more; a number or an array.

    Returns:
      float32 nats a response, of n's shape. No mask.

    >>> [round(kl, 3) for kl in best_of_n_kl(jnp.array([1, 2, 16])).tolist()]
    [0.0, 0.193, 1.835]
    """
    n = jnp.asarray(n, jnp.float32)
    return jnp.log(n) - (n - 1.0) / n


def expected_best_of(
    scores: Array, *, group_size: int, k: int, gold: Array | None = None
) -> Array:
    """Mean best score of k responses, from n ≥ k: Σᵢ C(i−1, k−1)/C(n, k) · s₍ᵢ₎.

    s₍ᵢ₎ is the i-th smallest score. It is the mean over all subsets of k of the n
    responses, and so has no bias: one batch with n responses a prompt gives the curve
    of best-of-1 to best-of-n. Nakano et al. 2021 (WebGPT), arXiv:2112.09332, app. I;
    for scores 0 and 1 it is pass@k: Chen et al. 2021, arXiv:2107.03374. With ``gold``
    it is what the best of k by their scores are worth by the truth, which falls again
    where the scores are over-optimised: Gao et al. 2022, arXiv:2210.10760.

    Args:
      scores: [B] float, one a response; rows of a group are adjacent.
      group_size: G = n, responses a prompt; divides B.
      k: 1 to n.
      gold: [B] float, another score of the same responses, whose mean is taken of those
        that ``scores`` choose, the last of several best; None: the scores themselves.

    Returns:
      [B / G] float32 in units of what the mean is of. No mask: every row counts.

    Raises:
      ValueError: if group_size is below 1 or does not divide B, or k is not in 1 … n.

    >>> expected_best_of(jnp.array([1.0, 0.0, 4.0]), group_size=3, k=2).tolist()
    [3.0]
    """
    groups = _groups(scores, group_size)
    worth = groups if gold is None else _groups(gold, group_size)
    chex.assert_equal_shape([groups, worth])
    if not 1 <= k <= group_size:
        raise ValueError(f"expected_best_of: k = {k}, expected 1 to {group_size}")
    subsets = math.comb(group_size, k)
    share = [math.comb(i, k - 1) / subsets for i in range(group_size)]
    weights = jnp.asarray(np.array(share, np.float32))
    ranked = jnp.take_along_axis(worth, jnp.argsort(groups, axis=1), axis=1)
    return jnp.sum(ranked * weights[None], axis=1)


def _groups(scores: Array, group_size: int) -> Array:
    """[B / G, G] float32."""
    chex.assert_rank(scores, 1)
    if group_size < 1 or scores.shape[0] % group_size:
        raise ValueError(
            f"group_size = {group_size} of {scores.shape[0]} scores: expected a "
            "divisor of the number of scores"
        )
    return scores.astype(jnp.float32).reshape(-1, group_size)
