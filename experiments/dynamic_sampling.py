"""Batches of prompts, scored; drawn again until they have something to teach.

Dynamic sampling of Yu et al. 2025 (DAPO), arXiv:2503.14476, §3.2.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from experiments.rollouts import Drawn
from rlhf_jax.data import Loader
from rlhf_jax.ops import informative_groups
from rlhf_jax.parallel import Where, shard, unshard
from rlhf_jax.steps import PolicyConfig, shape_scores
from rlhf_jax.types import Array, Params, TokenBatch


def make_draws(
    draw: Callable[[Params, TokenBatch, Array], Drawn],
    prompts: Loader[TokenBatch],
    algorithm: PolicyConfig,
    devices: Where,
    *,
    most: int,
) -> Callable[[Params, Array], Drawn]:
    """A function ``(params, key)``: a scored batch of the next prompts.

    Args:
      draw: samples and scores.
      prompts: all batches of one width, if several are drawn.
      algorithm: the group size, and what a score is.
      devices: where the batch goes.
      most: batches drawn until groups of unequal scores fill one; if they do not, it is
        filled up with the first of the others. With 1, a batch is as it is drawn.
    """

    def draw_next(params: Params, key: Array) -> Drawn:
        batch = draw(params, next(prompts), key)
        asked = np.repeat(prompts.rows.astype(np.int32), algorithm.sampling.completions)
        return batch._replace(asked=shard(asked, devices))

    def drawn(params: Params, key: Array) -> Drawn:
        if most == 1:
            return draw_next(params, key)
        taught, others, rows = [], [], 0
        for n in range(most):
            batch = unshard(draw_next(params, jax.random.fold_in(key, n)))
            rows = len(batch.scores)
            unequal = _unequal(batch, algorithm)
            taught.append(jax.tree.map(lambda x, keep=unequal: x[keep], batch))
            others.append(jax.tree.map(lambda x, keep=unequal: x[~keep], batch))
            if sum(len(part.scores) for part in taught) >= rows:
                break
        whole = jax.tree.map(
            lambda *parts: np.concatenate(parts)[:rows], *taught, *others
        )
        numbered = dataclasses.replace(
            whole.rollout, row=np.arange(rows, dtype=np.int32)
        )
        return shard(whole._replace(rollout=numbered), devices)

    return drawn


def _unequal(batch: Drawn, algorithm: PolicyConfig) -> np.ndarray:
    """[B] bool: whether the scores of a row's group differ, as the update sees them."""
    scores = shape_scores(batch.scores, batch.rollout.truncated, algorithm)
    size = algorithm.sampling.completions
    return np.asarray(informative_groups(scores, group_size=size))
