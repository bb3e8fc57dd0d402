"""Learned rewards: which output, of which token, and on which scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import tabular_score, token_batch

from rlhf_jax.ops import ensemble_reward
from rlhf_jax.rewards import ensemble_scores, learned_reward, normalize_scores

BATCH = token_batch([[1, 2, 0], [0, 1, 2]], real=[[1, 1, 0], [0, 1, 1]])


def test_score_logit_and_probability():
    # The last real token is 2 in both rows.
    one = {"scores": jnp.array([[5.0], [6.0], [0.25]])}
    two = {"scores": jnp.array([[5.0, 5.0], [6.0, 6.0], [1.0, 3.0]])}
    reward = lambda params, kind: learned_reward(
        tabular_score, params, BATCH, kind=kind
    ).tolist()
    assert reward(one, "score") == [0.25, 0.25]
    assert reward(two, "logit") == [3.0, 3.0]
    expected = 1 / (1 + np.exp(-2.0))
    assert reward(two, "probability") == pytest.approx([expected, expected])


def test_only_the_last_column_is_asked_for():
    asked = []

    def score(params, batch, *, at=None):
        asked.append(at)
        return tabular_score(params, batch, at=at)

    params = {"scores": jnp.array([[1.0], [2.0], [3.0]])}
    assert learned_reward(score, params, BATCH).tolist() == [3.0, 3.0]
    assert [at.tolist() for at in asked] == [[[1], [2]]]


def test_a_row_of_padding_scores_0_and_passes_no_gradient():
    batch = token_batch([[1, 2], [0, 0]], real=[[1, 1], [0, 0]])
    total = lambda table: learned_reward(tabular_score, {"scores": table}, batch).sum()
    table = jnp.array([[jnp.nan], [1.0], [5.0]])
    assert total(table) == 5.0
    assert jax.grad(total)(table).tolist() == [[0.0], [0.0], [1.0]]


def test_the_reward_of_another_label():
    three = {"scores": jnp.array([[0.0] * 3, [0.0] * 3, [-1.0, 2.0, 0.5]])}
    reward = lambda **kw: learned_reward(tabular_score, three, BATCH, **kw).tolist()
    assert reward(kind="logit", label=0) == [-1.0, -1.0]
    share = np.exp(0.5) / np.exp([-1.0, 2.0, 0.5]).sum()
    assert reward(kind="probability", label=2) == pytest.approx([share, share])
    with pytest.raises(ValueError, match="label = 3"):
        reward(kind="logit", label=3)


def test_several_models_are_rows():
    tables = [{"scores": jnp.array([[0.0], [0.0], [s]])} for s in (1.0, 2.0, 6.0)]
    scores = ensemble_scores([(tabular_score, table) for table in tables], BATCH)
    assert scores.tolist() == [[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]]
    assert ensemble_reward(scores, kind="minimum").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("outputs", "kind"), [(1, "logit"), (2, "score")])
def test_outputs_must_fit_the_kind(outputs, kind):
    params = {"scores": jnp.zeros((3, outputs))}
    with pytest.raises(ValueError, match="outputs"):
        learned_reward(tabular_score, params, BATCH, kind=kind)


def test_normalizing_twice_is_normalizing_once():
    raw = np.array([3.0, -1.0, 4.0, 0.5], np.float32)
    head = {"gain": jnp.float32(2.0), "offset": jnp.float32(-0.5), "kernel": 7}
    score = lambda params: (
        params["score_head"]["gain"] * raw + (params["score_head"]["offset"])
    )
    params = {"score_head": head, "trunk": 1}
    once = normalize_scores(params, score(params))
    np.testing.assert_allclose(
        [score(once).mean(), score(once).std()], [0, 1], atol=1e-6
    )
    twice = normalize_scores(once, score(once))
    np.testing.assert_allclose(score(twice), score(once), atol=1e-6)
    assert (once["trunk"], once["score_head"]["kernel"]) == (1, 7)


def test_equal_scores_cannot_be_normalized():
    head = {"gain": jnp.float32(1.0), "offset": jnp.float32(0.0)}
    with pytest.raises(ValueError, match="4 reference samples all score 2"):
        normalize_scores({"score_head": head}, jnp.full(4, 2.0))
