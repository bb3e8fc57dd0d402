"""Single users' rewards: a prior, a fit of few labels, and a scalar reward model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from steps.batches import MODEL
from toys import token_batch

from rlhf_jax.models import ScoreModel, init_params, score_apply
from rlhf_jax.ops import personal_score
from rlhf_jax.rewards import (
    UserPrior,
    fit_user,
    learned_reward,
    sequence_scores,
    user_prior,
    user_reward_params,
)

R, N = 3, 24


def labels(seed: int) -> tuple[Any, ...]:
    """Pairs of a size that is any user's, some of weight 0, and a prior."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(R, R))
    scale = (0.3, 1.0, 5.0)[seed % 3]
    mean: Any = rng.normal(size=R)
    covariance: Any = factor @ factor.T + 0.01 * np.eye(R)
    prior = UserPrior(mean, covariance)
    weight = rng.uniform(0.5, 2.0, N) * (rng.random(N) < 0.6)
    return rng.normal(size=N), scale * rng.normal(size=(N, R)), weight, prior


def float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def best(leads, differences, weight, prior) -> np.ndarray:
    """The oracle: float64, the objective in the weights themselves, SciPy's BFGS."""
    precision = np.linalg.inv(prior.covariance)

    def objective(w):
        away, logits = w - prior.mean, leads + differences @ w
        return weight @ np.logaddexp(0, -logits) + 0.5 * away @ precision @ away

    return minimize(objective, prior.mean, method="BFGS", options={"gtol": 1e-8}).x


fit = jax.jit(fit_user)


@pytest.mark.parametrize("seed", range(6))
def test_a_fit_is_the_most_likely(seed):
    case = labels(seed)
    found, expected = fit(*float32(case)), best(*case)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(expected - case[3].mean).max() > 0.05  # the labels say something


def test_without_labels_a_user_is_as_the_others():
    leads, differences, _, prior = float32(labels(0))
    nothing = jnp.zeros(N)
    assert fit(leads, differences, nothing, prior).tolist() == prior.mean.tolist()
    # What has no weight may be anything.
    garbage = jnp.full((N, R), jnp.nan)
    found = fit(leads * jnp.inf, garbage, nothing, prior)
    assert found.tolist() == prior.mean.tolist()


def test_many_labels_find_the_weights_that_made_them():
    rng = np.random.default_rng(0)
    true, count = np.array([1.0, -2.0, 0.0]), 6_000
    leads, differences = rng.normal(size=count), rng.normal(size=(count, R))
    won = rng.random(count) < 1 / (1 + np.exp(-(leads + differences @ true)))
    sign = np.where(won, 1.0, -1.0)  # the winner is the chosen one
    prior = UserPrior(jnp.zeros(R), jnp.eye(R))
    case = float32((sign * leads, sign[:, None] * differences, np.ones(count)))
    found = fit(*case, prior)
    # A standard error is about 1/√(6000·0.13) = 0.036.
    np.testing.assert_allclose(found, true, atol=0.12)


def test_many_users_at_once():
    cases = [float32(labels(seed)) for seed in range(4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)
    together = jax.jit(jax.vmap(fit_user))(*stacked)
    for case, found in zip(cases, together, strict=True):
        np.testing.assert_allclose(found, fit(*case), rtol=1e-3, atol=1e-3)


def test_the_prior_of_users_in_two_directions():
    rng = np.random.default_rng(1)
    users = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 4)) + 1.0
    prior = user_prior(jnp.asarray(users, jnp.float32), ridge=0.01)
    np.testing.assert_allclose(prior.mean, users.mean(axis=0), rtol=1e-5)
    covariance = np.cov(users.T)
    spread = 0.01 * np.trace(covariance) / 4
    expected = covariance + spread * np.eye(4)
    np.testing.assert_allclose(prior.covariance, expected, rtol=1e-4, atol=1e-5)
    # No direction is ruled out, and none of the other two is likely.
    least, less, *_ = np.linalg.eigvalsh(prior.covariance)
    np.testing.assert_allclose([least, less], spread, rtol=1e-2)
    with pytest.raises(ValueError, match="1 users: expected at least 2"):
        user_prior(jnp.ones((1, 4)))


@pytest.fixture(scope="module")
def network():
    """Two rows, and a network of 1 + R outputs whose head is not as it began."""
    params = init_params(ScoreModel(MODEL, 1 + R), key=jax.random.key(0))
    head = params["score_head"] | {"bias": jnp.arange(1.0 + R), "gain": 0.5}
    head["offset"] = jnp.float32(0.3)
    batch = token_batch([[1, 2, 3], [3, 2, 0]], real=[[1, 1, 1], [1, 1, 0]])
    return params | {"score_head": head, "users": jnp.ones((5, R))}, batch


def test_one_user_s_network_gives_that_user_s_score(network):
    params, batch = network
    outputs = sequence_scores(score_apply(MODEL, num_outputs=1 + R), params, batch)
    reward = functools.partial(learned_reward, score_apply(MODEL))
    for weights in ([0.5, -2.0, 1.0], [0.0, 0.0, 0.0]):
        ours = user_reward_params(params, jnp.array(weights))
        users, who = jnp.array([weights]), jnp.zeros(2, int)
        expected = personal_score(outputs[:, 0], outputs[:, 1:], users, who)
        np.testing.assert_allclose(reward(ours, batch), expected, rtol=1e-5, atol=1e-5)
        shapes = jax.tree.map(jnp.shape, ours)
        one = jax.eval_shape(functools.partial(init_params, ScoreModel(MODEL), key=KEY))
        assert shapes == jax.tree.map(jnp.shape, one)  # a scalar reward model
    np.testing.assert_allclose(reward(ours, batch), outputs[:, 0], rtol=1e-5)


def test_weights_of_another_network(network):
    with pytest.raises(ValueError, match="4 outputs, expected 1 [+] 2, the pooled"):
        user_reward_params(network[0], jnp.zeros(2))


KEY = jax.random.key(0)
