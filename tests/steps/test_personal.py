"""A reward model of many users on a table of scores and features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_score, token_batch

from rlhf_jax.steps import create_state, pairwise_terms, personal_terms, reward_step
from rlhf_jax.types import PreferenceBatch

# Tokens 0 … 2; a pooled score and two features of each.
TABLE = np.array([[0.0, 1.0, 0.0], [0.5, -1.0, 2.0], [1.0, 0.0, 0.0]])
USERS = np.array([[1.0, 0.0], [0.0, -1.0]])


def make_pairs(chosen, rejected, annotator, weight=None):
    rows = lambda tokens: token_batch([[0, t] for t in tokens])
    n = len(chosen)
    return PreferenceBatch(
        chosen=rows(chosen),
        rejected=rows(rejected),
        margin=jnp.zeros(n),
        weight=jnp.ones(n) if weight is None else jnp.asarray(weight, jnp.float32),
        annotator=jnp.asarray(annotator, jnp.int32),
    )


def make_params():
    return {"scores": jnp.asarray(TABLE), "users": jnp.asarray(USERS)}


terms = functools.partial(personal_terms, prior_std=2.0, num_pairs=10)


def test_by_hand():
    pairs = make_pairs([1, 1, 1], [0, 0, 0], [0, 1, -1])
    found, weight, metrics = terms(tabular_score, make_params(), pairs)
    # s₁ − s₀: 0.5 + 1·(−1 − 1); 0.5 − 1·(2 − 0); 0.5. ‖W‖² = 2, 2 / (2·4·10) = 0.025.
    losses = np.logaddexp(0, -np.array([-1.5, -1.5, 0.5]))
    np.testing.assert_allclose(found, losses + 0.025, rtol=1e-6)
    assert weight.tolist() == [1, 1, 1]
    shown = metrics.compute()
    assert shown["reward/loss"] == pytest.approx(losses.mean())  # without the prior
    assert shown["reward/accuracy"] == pytest.approx(1 / 3)


def test_users_without_numbers_are_the_pooled_model():
    params = make_params() | {"users": jnp.zeros((2, 2))}
    pairs = make_pairs([1, 2, 0], [0, 1, 2], [0, 1, -1], weight=[1, 2, 0])
    own = terms(tabular_score, params, pairs)
    pooled = pairwise_terms(tabular_score, {"scores": params["scores"][:, :1]}, pairs)
    jax.tree.map(np.testing.assert_allclose, own, pooled)


def test_the_prior_counts_once_however_the_pairs_are_cut_into_updates():
    gradient = lambda pairs: jax.grad(
        lambda params: jnp.mean(terms(tabular_score, params, pairs)[0])
    )(make_params())["users"]
    # Of a user who judged nothing it is the prior's, W / σ²N, in each update.
    alone = gradient(make_pairs([1], [0], [0]))[1]
    np.testing.assert_allclose(alone, USERS[1] / (4 * 10), rtol=1e-6)
    more = gradient(make_pairs([1, 2, 1, 2], [0, 0, 2, 1], [0, 0, -1, 0]))[1]
    np.testing.assert_allclose(more, alone, rtol=1e-6)


def test_packed_pairs_are_each_their_own_user_s():
    segments = jnp.array([[1, 1, 2, 2]])
    side = lambda row: dataclasses.replace(token_batch(row), segment_ids=segments)
    packed = PreferenceBatch(
        side([[0, 1, 0, 1]]),
        side([[0, 0, 0, 0]]),
        margin=jnp.zeros((1, 2)),
        weight=jnp.ones((1, 2)),
        annotator=jnp.array([[0, 1]]),
    )
    found, _, _ = terms(tabular_score, make_params(), packed)
    plain = make_pairs([1, 1], [0, 0], [0, 1])
    expected, _, _ = terms(tabular_score, make_params(), plain)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_opposed_users_are_both_right():
    """One likes token 1 better than 0, the other 0; both like 2 best."""
    likes = ([1, 2, 2, 0, 2, 2], [0, 0, 1, 1, 0, 1])
    pairs = make_pairs(*likes, [0, 0, 0, 1, 1, 1])
    rng = np.random.default_rng(0)
    params = {
        "scores": jnp.asarray(0.1 * rng.normal(size=(3, 2)), jnp.float32),
        "users": jnp.asarray(0.1 * rng.normal(size=(2, 1)), jnp.float32),
    }

    def learn(terms_fn):
        state = create_state(tabular_score, params, optax.adam(0.05))
        step = jax.jit(functools.partial(reward_step, terms_fn=terms_fn))
        for _ in range(150):
            state, _ = step(state, pairs)
        _, _, metrics = terms_fn(tabular_score, state.params, pairs)
        return state.params, metrics.compute()["reward/accuracy"]

    prior = functools.partial(personal_terms, prior_std=1.0, num_pairs=6)
    learnt, accuracy = learn(prior)
    assert accuracy == 1
    assert learnt["users"][0, 0] * learnt["users"][1, 0] < 0
    assert learn(pairwise_terms)[1] < 1  # of one score for both, one is wrong
