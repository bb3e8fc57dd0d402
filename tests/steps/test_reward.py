"""Reward models of every kind on a table of scores."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps.batches import MODEL
from toys import tabular_score, token_batch

from rlhf_jax.models import ScoreModel, init_params, score_apply
from rlhf_jax.rows import take_columns
from rlhf_jax.steps import (
    binary_terms,
    choice_terms,
    create_state,
    pairwise_terms,
    ranking_terms,
    reward_eval,
    reward_step,
)
from rlhf_jax.types import PreferenceBatch


def _state(scores, lr=1.0):
    params = {"scores": jnp.asarray(scores, jnp.float32)}
    return create_state(tabular_score, params, optax.sgd(lr))


def _pairs(chosen, rejected, weight=None):
    """Sequences (0, token); the score is the last real token's."""
    rows = lambda tokens: token_batch([[0, t] for t in tokens])
    n = len(chosen)
    return PreferenceBatch(
        chosen=rows(chosen),
        rejected=rows(rejected),
        margin=jnp.zeros(n),
        weight=jnp.ones(n) if weight is None else jnp.asarray(weight, jnp.float32),
        annotator=jnp.full(n, -1),
    )


def test_pairwise_fits_the_log_odds():
    # Token 1 beats 2 in three pairs of four: Bradley–Terry's maximum likelihood has
    # r₁ − r₂ = log 3.
    pairs = _pairs([1, 1, 1, 2], [2, 2, 2, 1])
    state = _state(np.zeros((3, 1)))
    step = jax.jit(lambda s, b: reward_step(s, b, terms_fn=pairwise_terms))
    for _ in range(200):
        state, _ = step(state, pairs)
    _, metrics = step(state, pairs)
    gap = state.params["scores"][1, 0] - state.params["scores"][2, 0]
    assert float(gap) == pytest.approx(np.log(3), abs=1e-3)
    assert metrics.compute()["reward/accuracy"] == 0.75


def test_weights_count_pairs():
    # Weight 2 is the same as the pair twice; weight 0 as the pair absent.
    twice, _ = reward_step(
        _state(np.zeros((3, 1))), _pairs([1, 1, 2], [2, 2, 1]), terms_fn=pairwise_terms
    )
    weighted, metrics = reward_step(
        _state(np.zeros((3, 1))),
        _pairs([1, 2, 2], [2, 1, 0], weight=[2, 1, 0]),
        terms_fn=pairwise_terms,
    )
    np.testing.assert_allclose(twice.params["scores"], weighted.params["scores"])
    assert metrics.compute()["reward/loss"] == pytest.approx(np.log(2))


def test_score_is_read_at_the_last_real_token():
    params = {"scores": jnp.arange(4.0)[:, None]}
    right = token_batch([[1, 2, 3]], real=[[1, 1, 0]])
    left = token_batch([[3, 1, 2]], real=[[0, 1, 1]])
    from rlhf_jax.rewards import sequence_scores

    assert sequence_scores(tabular_score, params, right).tolist() == [[2.0]]
    assert sequence_scores(tabular_score, params, left).tolist() == [[2.0]]


def test_most_of_the_last_layer_is_never_computed():
    """Its keys and values are."""
    model = dataclasses.replace(MODEL, scan_unroll=2, n_kv_heads=1, max_length=64)
    score_fn = score_apply(model)
    whole = lambda params, batch, *, at: take_columns(score_fn(params, batch), at)
    params = init_params(ScoreModel(model), key=jax.random.key(0))
    side, nothing = token_batch(np.ones((2, 64))), jnp.zeros(2)
    pairs = PreferenceBatch(side, side, nothing, nothing + 1, nothing)
    step = jax.jit(functools.partial(reward_step, terms_fn=pairwise_terms))

    def flops(score_fn):
        state = create_state(score_fn, params, optax.sgd(1.0))
        counted: Any = step.lower(state, pairs).cost_analysis()
        return counted["flops"]

    assert flops(score_fn) < (1 - 0.7 / model.n_layers) * flops(whole)


def test_ranking_and_choice_learn_the_order():
    tokens = token_batch([[0, t] for t in (3, 1, 2)])
    ranks = jnp.array([[1, 2, 0]])  # 2 before 3 before 1
    for terms_fn in (ranking_terms, choice_terms):
        state = _state(np.zeros((4, 1)))
        for _ in range(50):
            state, _ = reward_step(state, (tokens, ranks), terms_fn=terms_fn)
        _, metrics = reward_step(state, (tokens, ranks), terms_fn=terms_fn)
        assert metrics.compute()["reward/accuracy"] == 1.0
        best = jnp.argmax(state.params["scores"][1:, 0]) + 1
        assert int(best) == 2
    # The K-wise loss also orders the two that were not best; a choice says nothing.
    ranked = reward_step(
        _state(np.zeros((4, 1))), (tokens, ranks), terms_fn=ranking_terms
    )
    chosen = reward_step(
        _state(np.zeros((4, 1))), (tokens, ranks), terms_fn=choice_terms
    )
    assert ranked[0].params["scores"][3, 0] > ranked[0].params["scores"][1, 0]
    assert chosen[0].params["scores"][3, 0] == chosen[0].params["scores"][1, 0]


def test_ranking_accuracy_counts_ordered_pairs():
    # Scores order 1 < 2 < 3. Ranks: 3 best, then 1 and 2 tied: 2 ordered pairs, both
    # right. Second prompt: 1 best, then 2, then 3: all three pairs wrong.
    params = {"scores": jnp.arange(4.0)[:, None]}
    tokens = token_batch([[0, t] for t in (1, 2, 3, 1, 2, 3)])
    ranks = jnp.array([[1, 1, 0], [0, 1, 2]])
    metrics = reward_eval(
        params, (tokens, ranks), score_fn=tabular_score, terms_fn=ranking_terms
    )
    assert metrics.compute()["reward/accuracy"] == 0.5


def test_binary_learns_labels_and_ignores_the_unlabelled():
    tokens = token_batch([[0, 1], [0, 2], [0, 3]])
    labels = jnp.array([1, 0, -1])
    state = _state(np.zeros((4, 2)))
    for _ in range(50):
        state, _ = reward_step(state, (tokens, labels), terms_fn=binary_terms)
    _, metrics = reward_step(state, (tokens, labels), terms_fn=binary_terms)
    logits = state.params["scores"]
    assert logits[1, 1] > logits[1, 0] and logits[2, 0] > logits[2, 1]
    assert logits[3].tolist() == [0.0, 0.0]
    assert metrics.compute()["reward/accuracy"] == 1.0
