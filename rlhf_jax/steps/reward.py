"""Training a reward model: pairs, rankings, choices or labels, by one step.

Each kind of judgement is a function ``(score_fn, params, judged) -> (terms, weight,
metrics)``; the step only averages the terms and updates.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.personal import personal_score
from rlhf_jax.ops.reward_loss import (
    binary_reward_loss,
    choice_reward_loss,
    pairwise_accuracy,
    pairwise_reward_loss,
    ranking_reward_loss,
)
from rlhf_jax.rewards.learned import last_scores, sequence_scores
from rlhf_jax.steps.forward import both_sides
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import (
    Array,
    Metrics,
    Params,
    PreferenceBatch,
    ScoreFn,
    TokenBatch,
    join_params,
)

RewardTerms = Callable[[ScoreFn, Params, Any], tuple[Array, Array, Metrics]]


def pairwise_terms(
    score_fn: ScoreFn, params: Params, pairs: PreferenceBatch
) -> tuple[Array, Array, Metrics]:
    """Bradley–Terry over pairs: Stiennon et al. 2020, arXiv:2009.01325.

    Both sides go through the network in one call, each score is read at the last real
    token of its sequence. A pair of weight 0 has no part. Rows may be packed.
    """
    both, segments = both_sides(pairs)
    scores = last_scores(score_fn, params, both, segments)[:, :, 0]
    chosen, rejected = (side.ravel() for side in jnp.split(scores, 2))
    terms = pairwise_reward_loss(chosen, rejected, margin=pairs.margin.ravel())
    right, weight = pairwise_accuracy(chosen, rejected), pairs.weight.ravel()
    return terms, weight, _metrics(terms, right, weight)


def personal_terms(
    score_fn: ScoreFn,
    params: Params,
    pairs: PreferenceBatch,
    *,
    prior_std: float,
    num_pairs: float,
) -> tuple[Array, Array, Metrics]:
    """Bradley–Terry over pairs of many users: ``ops.personal_score``, and a prior.

    Bose et al. 2025 (LoRe), arXiv:2504.14439. −log σ(s_u(y₊) − s_u(y₋) − m) +
    ‖W‖²/2σ²N, whose mean over N pairs is 1/N of what is least where their likelihood
    times the prior w_uk ~ N(0, σ²) is largest.

    Args:
      score_fn: a network of 1 + R outputs, the pooled score first.
      params: its parameters, and "users" [U, R]; updates change both.
      pairs: ``annotator`` is a row of users, or negative: unknown.
      prior_std: σ, in units of the weights.
      num_pairs: N, weights of all pairs that are learned from.

    Returns:
      Terms and weights a pair; the metrics leave the prior out, ``reward/loss`` and
      ``reward/accuracy`` are comparable with those of `pairwise_terms`.
    """
    both, segments = both_sides(pairs)
    outputs = last_scores(score_fn, params, both, segments)
    outputs = outputs.reshape(-1, outputs.shape[-1])  # [2·B·S, 1 + R]
    users = params["users"]
    who = jnp.tile(pairs.annotator.ravel(), 2)
    scores = personal_score(outputs[:, 0], outputs[:, 1:], users, who)
    chosen, rejected = jnp.split(scores, 2)
    terms = pairwise_reward_loss(chosen, rejected, margin=pairs.margin.ravel())
    right, weight = pairwise_accuracy(chosen, rejected), pairs.weight.ravel()
    prior = jnp.sum(jnp.square(users)) / (2 * prior_std**2 * num_pairs)
    return terms + prior, weight, _metrics(terms, right, weight)


def ranking_terms(
    score_fn: ScoreFn, params: Params, ranked: tuple[TokenBatch, Array]
) -> tuple[Array, Array, Metrics]:
    """Plackett–Luce over K completions a prompt: ([B·K, T] tokens, [B, K] ranks).

    Plackett 1975 (no arXiv number); `ranking_reward_loss`.

    Accuracy is the share of ordered pairs of a ranking that the scores order alike.
    """
    batch, ranks = ranked
    scores = sequence_scores(score_fn, params, batch).reshape(ranks.shape)
    terms = ranking_reward_loss(scores, ranks)
    better = (ranks[:, :, None] < ranks[:, None, :]) & (ranks >= 0)[:, :, None]
    this, other = jnp.broadcast_arrays(scores[:, :, None], scores[:, None, :])
    right = pairwise_accuracy(this.ravel(), other.ravel()).reshape(this.shape)
    share = jnp.sum(jnp.where(better, right, 0.0), axis=(1, 2)) / jnp.maximum(
        jnp.sum(better, axis=(1, 2)), 1
    )
    weight = jnp.any(better, axis=(1, 2)).astype(jnp.float32)
    return terms, weight, _metrics(terms, share, weight)


def choice_terms(
    score_fn: ScoreFn, params: Params, ranked: tuple[TokenBatch, Array]
) -> tuple[Array, Array, Metrics]:
    """Softmax over K completions, rank 0 chosen: Ziegler et al. 2019, arXiv:1909.08593.

    Accuracy is the share of prompts whose chosen completion scores highest.
    """
    batch, ranks = ranked
    scores = sequence_scores(score_fn, params, batch).reshape(ranks.shape)
    choice = jnp.argmin(jnp.where(ranks < 0, ranks.shape[1], ranks), axis=1)
    terms = choice_reward_loss(scores, choice)
    right = (jnp.argmax(scores, axis=1) == choice).astype(jnp.float32)
    weight = jnp.ones_like(terms)
    return terms, weight, _metrics(terms, right, weight)


def binary_terms(
    score_fn: ScoreFn, params: Params, labelled: tuple[TokenBatch, Array]
) -> tuple[Array, Array, Metrics]:
    """Two-logit classifier: ([B, T] tokens, [B] labels, 1 = good, −1 = no label).

    No reference.
    """
    batch, labels = labelled
    logits = sequence_scores(score_fn, params, batch)
    known = labels >= 0
    terms = binary_reward_loss(logits, jnp.where(known, labels, 0))
    right = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    weight = known.astype(jnp.float32)
    return terms, weight, _metrics(terms, right, weight)


def reward_step(
    state: TrainState,
    judged: Any,
    frozen: Params | None = None,
    *,
    terms_fn: RewardTerms,
    micro_batches: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of the weighted mean of a kind's terms over the global batch.

    Stiennon et al. 2020, arXiv:2009.01325, section 3.4, where the kind is pairs.

    Args:
      state: reward model with ``apply_fn`` a `ScoreFn`.
      judged: what ``terms_fn`` takes: a PreferenceBatch, (tokens, ranks) or
        (tokens, labels).
      frozen: parameters of the network that are not trained; None where all are.
      terms_fn: the kind of judgement.
      micro_batches: parts that are computed one after the other (`apply_loss`).
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state, and ``reward/loss`` (nats), ``reward/accuracy``,
      ``optim/grad_norm``.
    """

    def loss_fn(params, part):
        terms, weight, metrics = terms_fn(
            state.apply_fn, join_params(frozen, params), part
        )
        total, _ = masked_sum(terms * weight, weight > 0)
        return total, jnp.sum(weight), metrics

    return apply_loss(
        state, loss_fn, judged, micro_batches=micro_batches, axis_name=axis_name
    )


def reward_eval(
    params: Params,
    judged: Any,
    frozen: Params | None = None,
    *,
    score_fn: ScoreFn,
    terms_fn: RewardTerms,
    axis_name: str | None = None,
) -> Metrics:
    """``reward/loss`` and ``reward/accuracy`` of the global batch; no update.

    No reference.
    """
    _, _, metrics = terms_fn(score_fn, join_params(frozen, params), judged)
    return metrics.reduce(axis_name)


def _metrics(terms: Array, right: Array, weight: Array) -> Metrics:
    """Weighted mean loss; accuracy over the examples whose weight is not 0."""
    loss, _ = masked_sum(terms * weight, weight > 0)
    return Metrics.of(
        {
            "reward/loss": (loss, jnp.sum(weight)),
            "reward/accuracy": masked_sum(right, weight > 0),
        }
    )
