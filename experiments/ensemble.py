"""Several reward models trained at once, each on draws of its own, by one ``vmap``."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import ScoreModel, TransformerConfig, init_params, score_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.steps import create_state, pairwise_terms, reward_step
from rlhf_jax.types import Array, Params, PreferenceBatch, TokenBatch


class Pairs(NamedTuple):
    """N pairs of which some are labelled, all the time on the device."""

    first: TokenBatch  # [N, T]
    second: TokenBatch


class Ensemble(NamedTuple):
    """Functions of M networks; compiled once, however many pairs are labelled."""

    fit: Callable[..., Params]  # (pairs, labels [N], rows [U, M, B], key)
    score: Callable[..., Array]  # (params, TokenBatch [N, T]) -> [M, N]


def make_ensemble(
    model: TransformerConfig, optim: OptimConfig, *, members: int, updates: int
) -> Ensemble:
    """Networks that begin differently and see the pairs in orders of their own.

    Args:
      model: each network.
      optim: of each.
      members: M.
      updates: U, from new parameters on.
    """
    apply_fn, tx = score_apply(model), make_optimizer(optim, updates)

    def begin(key: Array) -> Any:
        return create_state(apply_fn, init_params(ScoreModel(model), key=key), tx)

    step = jax.vmap(functools.partial(reward_step, terms_fn=pairwise_terms))

    def update(
        pairs: Pairs, labels: Array, state: Any, rows: Array
    ) -> tuple[Any, None]:
        return step(state, labelled(pairs, labels, rows))[0], None

    @jax.jit
    def fit(pairs: Pairs, labels: Array, rows: Array, key: Array) -> Params:
        state = jax.vmap(begin)(jax.random.split(key, members))
        run = functools.partial(update, pairs, labels)
        return jax.lax.scan(run, state, rows)[0].params

    @jax.jit
    def score(params: Params, batch: TokenBatch) -> Array:
        of = lambda params: sequence_scores(apply_fn, params, batch)[:, 0]
        return jax.vmap(of)(params)

    return Ensemble(fit, score)


def labelled(pairs: Pairs, labels: Array, rows: Array) -> PreferenceBatch:
    """The pairs of rows [M, B], the better of each chosen; label 1: it is the first."""
    first, second = jax.tree.map(lambda x: x[rows], tuple(pairs))
    is_first = (labels[rows] > 0)[..., None]
    pick = lambda this, other: jnp.where(is_first, this, other)
    ones = jnp.ones(rows.shape, jnp.float32)
    return PreferenceBatch(
        chosen=jax.tree.map(pick, first, second),
        rejected=jax.tree.map(pick, second, first),
        margin=0 * ones,
        weight=ones,
        annotator=jnp.zeros(rows.shape, jnp.int32),
    )


def draw_rows(
    known: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """[U, M, B] of the labelled pairs: for each member pass after pass, shuffled."""
    updates, members, size = shape
    passes = -(-updates * size // len(known))
    order = [
        np.concatenate([rng.permutation(known) for _ in range(passes)])
        for _ in range(members)
    ]
    rows = np.stack([own[: updates * size] for own in order])
    return rows.reshape(members, updates, size).swapaxes(0, 1)
