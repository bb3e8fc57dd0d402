import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import personal_score

POOLED = jnp.array([1.0, 2.0, 3.0])
FEATURES = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
USERS = jnp.array([[0.5, 0.0], [-1.0, 0.1]])


def test_by_hand():
    # 1 + 0.5·1; 2 − 2 + 0.1·20; 3, of whom nothing is known.
    scores = personal_score(POOLED, FEATURES, USERS, jnp.array([0, 1, -1]))
    np.testing.assert_allclose(scores, [1.5, 2.0, 3.0], rtol=1e-6)
    assert scores.dtype == jnp.float32


def test_an_unknown_user_has_the_pooled_score_whatever_the_features():
    def total(pooled, features):
        who = jnp.array([-1, -7, 1])
        return personal_score(pooled, features, USERS, who).sum()

    garbage = FEATURES.at[:2].set(jnp.nan)
    value, (pooled, features) = jax.value_and_grad(total, argnums=(0, 1))(
        POOLED, garbage
    )
    assert value == pytest.approx(1 + 2 + (3 - 3 + 3))
    assert pooled.tolist() == [1, 1, 1]
    np.testing.assert_allclose(features, [[0, 0], [0, 0], [-1, 0.1]], rtol=1e-6)


def test_a_user_learns_from_own_pairs_alone():
    who = jnp.array([1, 1, -1])
    total = lambda users: personal_score(POOLED, FEATURES, users, who).sum()
    # Nothing to the first row: −1 does not count from the end, nor from the start.
    assert jax.grad(total)(USERS).tolist() == [[0, 0], [3, 30]]


def test_a_user_who_is_not_there():
    scores = personal_score(POOLED, FEATURES, USERS, jnp.array([0, 2, 1]))
    assert jnp.isnan(scores).tolist() == [False, True, False]


def test_shapes_that_do_not_fit():
    with pytest.raises(AssertionError):
        personal_score(POOLED, FEATURES, USERS[:, :1], jnp.zeros(3, int))
    with pytest.raises(AssertionError):
        personal_score(POOLED, FEATURES, USERS, jnp.zeros(2, int))
