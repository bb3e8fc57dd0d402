"""Active choice: which pairs to ask people about next."""

import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops.reward_ensemble import ensemble_disagreement


def choose_pairs(
    scores: np.ndarray, count: int, *, asked: np.ndarray | None = None
) -> np.ndarray:
    """Pairs whose order an ensemble of reward models disagrees about most.

    u_n = std over m of σ(s_mn0 − s_mn1), the models' probabilities that the first is
    better, and the pairs with the largest u: Christiano et al. 2017, arXiv:1706.03741,
    section 2.2.4. They are where models that fit the same labels still differ.

    Args:
      scores: [M, N, 2] float, of M models for both completions of N pairs.
      count: how many pairs to ask about.
      asked: [N] bool, pairs that are not to be chosen; None: all may be.

    Returns:
      [count] int, indices of pairs, the most contested first; ties in their order.

    Raises:
      ValueError: scores of another shape, or fewer pairs than ``count`` to choose from.

    >>> scores = np.array([[[9.0, 0.0], [4.0, 0.0]], [[9.0, 0.0], [0.0, 4.0]]])
    >>> choose_pairs(scores, 1).tolist()  # the second, where the two differ
    [1]
    """
    if scores.ndim != 3 or scores.shape[2] != 2:
        raise ValueError(f"scores have shape {scores.shape}: expected [M, N, 2]")
    free = np.full(scores.shape[1], True) if asked is None else ~asked
    if not 0 <= count <= free.sum():
        raise ValueError(
            f"count = {count}: expected at most {free.sum()}, the pairs not yet asked"
        )
    better = 1 / (1 + np.exp(-np.clip(scores[:, :, 0] - scores[:, :, 1], -60, 60)))
    spread = np.asarray(ensemble_disagreement(jnp.asarray(better, jnp.float32)))
    return np.argsort(np.where(free, -spread, np.inf), kind="stable")[:count]
