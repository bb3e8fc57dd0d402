"""Expected reward: by hand, against loops, and exact where all responses are few."""

import math
import statistics

import jax
import numpy as np
import pytest

from rlhf_jax.data import left_padded
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import (
    enumerate_responses,
    exact_expected_reward,
    expected_reward,
    mean_interval,
    predicted_standard_error,
)
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.types import ModelOutput


def test_by_hand():
    """Means 2, 5, 8: r̂ = 5, s² = 9, SE = √(9/3); each s²ᵢ = 2, so Var r̄ᵢ = 1.

    Fixed: SE² = (1 + 1 + 1)/9, degrees of freedom 3²/3 = 3. t₂ = 4.303, t₃ = 3.182.
    """
    found = expected_reward(np.array([[1.0, 3.0], [4.0, 6.0], [9.0, 7.0]]))
    assert found.query_means.tolist() == [2, 5, 8]
    assert found.standard_error == pytest.approx(math.sqrt(3))
    assert found.sampled.low == pytest.approx(5 - 4.3027 * math.sqrt(3), abs=1e-3)
    assert found.fixed.high == pytest.approx(5 + 3.1824 / math.sqrt(3), abs=1e-3)
    assert (found.within, found.between) == (2, pytest.approx(9 - 1))
    assert (found.queries, found.responses) == (3, 6)


def test_against_loops_with_responses_missing():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((7, 5)) < 0.6
        mask[0] = False
        mask[1:, :2] = True
        rewards = np.where(mask, rng.normal(size=mask.shape), np.nan)
        own = [row[m].tolist() for row, m in zip(rewards, mask, strict=True)][1:]
        means = [statistics.mean(row) for row in own]
        variances = [statistics.variance(row) for row in own]
        found = expected_reward(rewards, mask)
        assert found.sampled.value == pytest.approx(statistics.mean(means))
        error = statistics.stdev(means) / math.sqrt(6)
        assert found.standard_error == pytest.approx(error)
        assert found.within == pytest.approx(statistics.mean(variances))
        share = statistics.mean(1 / len(row) for row in own)
        apart = statistics.variance(means) - statistics.mean(variances) * share
        assert found.between == pytest.approx(max(apart, 0))
        assert math.isnan(found.query_means[0]) and found.queries == 6


def test_what_cannot_be_told():
    one_each = expected_reward(np.array([[1.0], [2.0]]))
    assert np.isnan([one_each.within, one_each.between, one_each.fixed.low]).all()
    assert np.isfinite(one_each.sampled).all()
    one_query = expected_reward(np.array([[1.0, 2.0]]))
    assert np.isnan(one_query.sampled.low) and np.isfinite(one_query.fixed).all()
    nothing = expected_reward(np.ones((2, 2)), np.zeros((2, 2), bool))
    assert np.isnan(nothing.sampled).all() and nothing.queries == 0


def test_the_variances_are_those_that_were_put_in():
    rng = np.random.default_rng(0)
    query, response = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 4))
    found = expected_reward(2 * query + 3 * response)
    assert found.between == pytest.approx(4, rel=0.1)
    assert found.within == pytest.approx(9, rel=0.05)
    # and what they predict for fewer is what fewer have
    fewer = expected_reward(2 * query[:1000] + 3 * response[:1000, :2])
    predicted = predicted_standard_error(found, queries=1000, responses=2)
    assert predicted == pytest.approx(fewer.standard_error, rel=0.1)


@pytest.mark.parametrize("bad", [np.ones(3), np.array([[1.0, np.nan]])])
def test_refused(bad):
    with pytest.raises(ValueError, match="rewards"):
        expected_reward(bad)


def test_a_response_that_is_there_twice_is_refused():
    logprobs = np.log([[0.6, 0.6]])
    with pytest.raises(ValueError, match="query 0: .* 1.2000 together"):
        exact_expected_reward(logprobs, np.ones((1, 2)))
    once = exact_expected_reward(
        logprobs, np.array([[2.0, np.nan]]), np.array([[True, False]])
    )
    assert once.value == pytest.approx(1.2) and once.mass == pytest.approx(0.6)


# A policy of four tokens that looks at the last one only; 0 ends a response.
LOGITS = jax.random.normal(jax.random.key(1), (4, 4)) * 1.5
CONFIG = SamplingConfig(max_new_tokens=3, temperature=0.7, stop_ids=(0,))
PROMPTS = [(1, 2), (3,)]


def _policy(params, batch, **_):
    return ModelOutput(params[batch.tokens], cache=())


def _tree(last, left):
    """{response: probability} by recursion, in Python."""
    logits = np.asarray(LOGITS, np.float64)[last] / CONFIG.temperature
    shares = np.exp(logits) / np.exp(logits).sum()
    found = {}
    for token, share in enumerate(shares):
        if token == 0 or left == 1:
            found[(token,)] = share
        else:
            for rest, p in _tree(token, left - 1).items():
                found[(token, *rest)] = share * p
    return found


@pytest.mark.parametrize("least", [1e-9, 0.02])
def test_enumeration_against_recursion(least):
    found = enumerate_responses(
        _policy, LOGITS, PROMPTS, config=CONFIG, least=least, batch_size=5
    )
    for prompt, responses in zip(PROMPTS, found, strict=True):
        whole = _tree(prompt[-1], 3)
        assert sum(whole.values()) == pytest.approx(1)
        wanted = {y: p for y, p in whole.items() if p >= least}
        assert {x.ids: math.exp(x.logprob) for x in responses} == pytest.approx(wanted)
        assert len(responses) == len(wanted)
        falling = [x.logprob for x in responses]
        assert falling == sorted(falling, reverse=True)


def test_the_estimate_is_of_the_exact_expectation(key):
    """Reward: the sum of the tokens. All responses have the mass 1 together."""
    found = enumerate_responses(_policy, LOGITS, PROMPTS, config=CONFIG, least=1e-9)
    shape = len(found), max(map(len, found))
    logprobs, worth = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, own in enumerate(found):
        logprobs[i, : len(own)] = [response.logprob for response in own]
        worth[i, : len(own)] = [sum(response.ids) for response in own]
    there = np.isfinite(logprobs)
    exact = exact_expected_reward(logprobs, worth, there)
    np.testing.assert_allclose(exact.mass, 1, atol=1e-5)

    prompts = left_padded([p for p in PROMPTS for _ in range(500)], length=2, pad_id=0)
    batch = generate(_policy, LOGITS, prompts, key=key, config=CONFIG).batch
    rewards = np.where(batch.mask, batch.tokens, 0).sum(axis=1).reshape(2, -1)
    for i in range(2):
        drawn = mean_interval(rewards[i], confidence=0.999)
        assert drawn.low < exact.value[i] < drawn.high
    both = expected_reward(rewards, confidence=0.999).fixed
    assert both.low < exact.value.mean() < both.high


def test_enumeration_refuses_what_it_does_not_know():
    few = SamplingConfig(max_new_tokens=2, top_k=2)
    with pytest.raises(UserError, match="without top_k"):
        enumerate_responses(_policy, LOGITS, PROMPTS, config=few, least=0.1)
    with pytest.raises(UserError, match="least probability = 0"):
        enumerate_responses(_policy, LOGITS, PROMPTS, config=CONFIG, least=0)
