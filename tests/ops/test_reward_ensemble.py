from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import ensemble_disagreement, ensemble_reward

# Two completions, three models. Means 2 and 5, variances (1 + 0 + 1)/3 and 0.
SCORES = jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
STD = np.sqrt(2 / 3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [2.0, 5.0]),
        ("minimum", [1.0, 5.0]),
        ("mean_minus_std", [2 - 3 * STD, 5.0]),
        ("mean_minus_variance", [2 - 3 * 2 / 3, 5.0]),
    ],
)
def test_by_hand(kind, expected):
    reward = ensemble_reward(SCORES, kind=kind, coef=3.0)
    np.testing.assert_allclose(reward, expected, rtol=1e-6, atol=1e-6)


def test_disagreement_by_hand():
    np.testing.assert_allclose(ensemble_disagreement(SCORES), [STD, 0.0], rtol=1e-6)


def test_gradient_where_all_agree():
    gradient = jax.grad(lambda s: ensemble_disagreement(s).sum())(SCORES)
    # ∂σ/∂sₘ = (sₘ − μ)/(M σ)
    expected = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) / (3 * STD)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


def test_one_model_is_itself():
    kinds: Any = ("mean", "minimum", "mean_minus_std", "mean_minus_variance")
    for kind in kinds:
        reward = ensemble_reward(SCORES[:1], kind=kind, coef=9.0)
        assert reward.tolist() == SCORES[0].tolist()


def test_unknown_kind():
    kind: Any = "median"
    with pytest.raises(ValueError, match="'median', expected mean, minimum"):
        ensemble_reward(SCORES, kind=kind)
