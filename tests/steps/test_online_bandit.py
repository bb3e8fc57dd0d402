"""Where preferences on a policy's own completions lead, on a bandit whose end is known.

Rewards r, a Bradley–Terry annotator, β. The expected gradient of online DPO is

    −β Σᵢⱼ π(i) π′(j) [P(i ≻ j) − σ(hᵢ − hⱼ)] (eᵢ − eⱼ),   h = β log π/π_ref,

by the logits, π′ who draws the second completion. Where P(i ≻ j) = σ(rᵢ − rⱼ), its
product with h − r is

    β Σᵢⱼ π(i) π′(j) [σ(hᵢ − hⱼ) − σ(rᵢ − rⱼ)] [(hᵢ − hⱼ) − (rᵢ − rⱼ)] ≥ 0,

and 0 only where h − r is a constant: it ends at π* ∝ π_ref e^(r/β), and nowhere else.
Where P = [rᵢ > rⱼ], the first bracket is never 0. XPO adds α (π_ref − π). Nash-MD's
gradient is that of P(π ≻ π′) − β KL, π′ held fixed: it ends where
π ∝ π_ref e^(P(· ≻ π′)/β).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps.test_bandit import _assert_reached, _bandit
from toys import tabular_policy, token_batch

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    OnlinePreferenceConfig,
    PreferenceConfig,
    create_state,
    online_preference_step,
    pair_experience_step,
    sample_pairs,
)

PROMPTS, ITERATIONS = 1024, 200
SAMPLING = SamplingConfig(max_new_tokens=1, completions=2)


def _learn(rewards, reference, **changes):
    """The policy that two completions a prompt make of the reference."""
    config = OnlinePreferenceConfig(SAMPLING, **changes)
    tx = optax.adam(optax.linear_schedule(0.1, 0.0, ITERATIONS))
    state = create_state(tabular_policy, reference, tx)
    prompts, rows = token_batch(jnp.zeros((PROMPTS, 1))), jnp.arange(PROMPTS)

    def iterate(state, key):
        sample_key, label_key = jax.random.split(key)
        rollout = sample_pairs(
            state.params,
            reference,
            prompts,
            rows,
            key=sample_key,
            apply_fn=tabular_policy,
            config=config,
        )
        experience, _ = pair_experience_step(
            reference,
            rollout,
            jnp.asarray(rewards, jnp.float32)[rollout.batch.tokens[:, -1]],
            key=label_key,
            ref_apply_fn=tabular_policy,
            config=config,
        )
        return online_preference_step(state, experience, config=config)[0], None

    keys = jax.random.split(jax.random.key(0), ITERATIONS)
    scan = jax.jit(functools.partial(jax.lax.scan, iterate))
    return np.asarray(jax.nn.softmax(scan(state, keys)[0].params["logits"][0]))


def _tilted(start, x):
    return start * np.exp(x) / np.sum(start * np.exp(x))


def _apart(p, q):
    return 0.5 * np.abs(p - q).sum()


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_online_dpo_of_drawn_labels_reaches_the_optimum(beta):
    reference, start, rewards, _ = _bandit()
    pair = PreferenceConfig(beta=beta)
    found = _learn(rewards, reference, preference=pair, labels="drawn")
    _assert_reached(found, _tilted(start, rewards / beta), start)


def test_online_dpo_of_the_better_ones_goes_past_it():
    reference, start, rewards, _ = _bandit()
    found = _learn(rewards, reference, preference=PreferenceConfig(beta=1.0))
    optimum = _tilted(start, rewards)
    assert _apart(found, optimum) > 0.1
    assert found @ rewards > optimum @ rewards + 0.1


def _xpo_end(start, rewards, wins, beta, alpha):
    """Where the expected gradient is 0, by going against it."""
    logits = np.log(start)
    for _ in range(20_000):
        p = np.exp(logits) / np.exp(logits).sum()
        h = beta * np.log(p / start)
        apart = 1 / (1 + np.exp(h[None] - h[:, None])) - wins  # σ(hᵢ − hⱼ) − P
        pull = beta * p[:, None] * start[None] * apart
        logits -= pull.sum(axis=1) - pull.sum(axis=0) + alpha * (start - p)
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("alpha", [1e-5, 0.05])
def test_xpo_reaches_the_optimum_as_its_bonus_goes_to_zero(alpha):
    reference, start, rewards, wins = _bandit()
    pair = PreferenceConfig(beta=0.5)
    found = _learn(
        *(rewards, reference),
        mixture=1.0,
        xpo_coef=alpha,
        preference=pair,
        labels="drawn",
    )
    end = _xpo_end(start, rewards, wins, 0.5, alpha)
    _assert_reached(found, end, start)
    optimum = _tilted(start, rewards / 0.5)
    assert (_apart(end, optimum) < 1e-3) == (alpha < 1e-3)
    assert (_apart(found, optimum) < 0.03) == (alpha < 1e-3)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_nash_md_reaches_the_best_answer_to_its_mixture(mixture):
    """π′ is then the Nash equilibrium held with β/(1 − α) instead of β."""
    reference, start, rewards, wins = _bandit()
    wins, beta = 1 / (1 + np.exp(4 * np.log(1 / wins - 1))), 0.2  # sharper: r · 4
    pair = PreferenceConfig(beta=beta)
    found = _learn(
        *(4 * rewards, reference), mixture=mixture, loss="nash_md", preference=pair
    )
    other = start
    for _ in range(2_000):  # damped
        step = _tilted(start, (1 - mixture) / beta * (wins @ other))
        other = other**0.9 * step**0.1
        other /= other.sum()
    end = _tilted(start, wins @ other / beta)
    _assert_reached(found, end, start)
    np.testing.assert_allclose(
        other, _tilted(start, (1 - mixture) * np.log(end / start)), rtol=1e-4
    )
    if mixture == 0:
        np.testing.assert_allclose(other, end, rtol=1e-4)  # of the game itself
