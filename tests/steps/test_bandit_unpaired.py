"""Which losses of good and bad completions find π* ∝ π_ref · exp(r/β), and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps.test_bandit import ARMS, UPDATES, _assert_reached, _bandit
from toys import tabular_policy, token_batch

from rlhf_jax.steps import UnpairedConfig, create_unpaired_state, unpaired_step

COPIES = 100  # of each arm, so many of them good as P(good) says


def _labels(rewards):
    """(P(good) = σ(r) in hundredths, its log odds)."""
    good = np.round(COPIES / (1 + np.exp(-rewards))) / COPIES
    return good, np.log(good / (1 - good))


def _centred(rewards):
    """Rewards whose mean over the good and mean over the bad cancel."""
    for _ in range(50):
        good, odds = _labels(rewards)
        means = [np.sum(p * odds) / np.sum(p) for p in (good, 1 - good)]
        rewards = rewards - np.mean(means)
    return rewards


@functools.cache
def _judge(kind, beta, shift):
    """(policy, optimum, start) after all labels, in expectation, of every arm."""
    reference, start, rewards, _ = _bandit()
    good, odds = _labels(_centred(rewards) + shift)
    arms = np.repeat(np.arange(ARMS), COPIES)
    labels = np.tile(np.arange(COPIES), ARMS) < np.repeat(good * COPIES - 0.5, COPIES)
    rows = token_batch([[0, a] for a in arms], mask=[[False, True]] * len(arms))
    update = lambda state, _: unpaired_step(
        state,
        (rows, jnp.asarray(labels, jnp.int32)),
        reference,
        ref_apply_fn=tabular_policy,
        config=UnpairedConfig(kind, beta=beta),
    )
    tx = optax.adam(optax.linear_schedule(0.1, 0.0, UPDATES))
    state = create_unpaired_state(tabular_policy, reference, tx)
    state, _ = jax.jit(lambda s: jax.lax.scan(update, s, length=UPDATES))(state)
    optimum = start * np.exp(odds / beta)
    found = np.asarray(jax.nn.softmax(state.params["logits"][0]))
    return found, optimum / optimum.sum(), start


def _distance(found, optimum, _):
    return 0.5 * np.abs(found - optimum).sum()


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_bco_reaches_the_optimum_where_its_shift_can(beta):
    # At π*, βu = log odds + δ everywhere, δ = −β log Z; and δ is half the sum of the
    # means of βu over the good and over the bad: so those of the log odds cancel.
    _assert_reached(*_judge("bco", beta, 0.0))


def test_bco_does_not_where_most_are_good():
    assert _distance(*_judge("bco", 1.0, 1.0)) > 0.1


@pytest.mark.parametrize("kind", ["kto", "apo_zero"])
def test_kto_and_apo_take_the_majority_for_the_truth(kind):
    """Expected losses are P(good) + (1 − 2 P(good)) σ(·): what is mostly bad goes."""
    found, optimum, start = _judge(kind, 1.0, 0.0)
    good, _ = _labels(_centred(_bandit()[2]))
    mostly_bad = good < 0.5
    assert start[mostly_bad].sum() > 0.1 and optimum[mostly_bad].sum() > 0.03
    assert found[mostly_bad].sum() < 0.003
    assert _distance(found, optimum, start) > 0.1
