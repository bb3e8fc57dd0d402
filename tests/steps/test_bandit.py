"""A known truth: what holds a policy with a KL leash must find π* ∝ π_ref · exp(r/β).

PPO and its relatives without a critic from rewards; DPO from preferences that follow
them; its relatives what they have in place of π*.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    PolicyConfig,
    PreferenceConfig,
    create_policy_state,
    create_state,
    policy_iteration,
    preference_step,
    reference_logps,
)
from rlhf_jax.types import PreferenceBatch

ARMS, ROWS, ITERATIONS = 8, 2048, 150
UPDATES = 600  # of preference optimisation, all pairs each


def _train(config, rewards, reference):
    """The state that a policy gets to from the reference, one update a minibatch."""
    updates = ITERATIONS * config.epochs * config.minibatches
    tx = optax.adam(optax.linear_schedule(0.1, 0.0, updates), eps=1e-5)
    state = create_policy_state(tabular_policy, reference, tx, kl_coef=config.kl.coef)
    prompts = token_batch(jnp.zeros((ROWS // config.sampling.completions, 1)))
    iterate = lambda state, key: policy_iteration(
        state,
        prompts,
        reference,
        key=key,
        sample_fn=tabular_policy,
        ref_apply_fn=tabular_policy,
        reward_fn=lambda _, rollout: rewards[rollout.batch.tokens[:, -1]],
        config=config,
    )
    keys = jax.random.split(jax.random.key(0), ITERATIONS)
    scan = jax.jit(functools.partial(jax.lax.scan, iterate))
    return scan(state, keys)[0]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ppo_reaches_the_optimum_in_closed_form(beta):
    reference = tabular_params(jax.random.key(1), ARMS)
    rewards = jax.random.uniform(jax.random.key(2), (ARMS,), minval=-1.0, maxval=1.0)
    log_ref = jax.nn.log_softmax(reference["logits"][0])
    optimum = jax.nn.softmax(log_ref + rewards / beta)
    start = 0.5 * float(jnp.abs(jnp.exp(log_ref) - optimum).sum())
    config = PolicyConfig(
        SamplingConfig(max_new_tokens=1),
        kl=KLConfig(coef=beta),
        missing_stop="keep",
        epochs=2,
        minibatches=2,
        value_coef=0.5,
        value_clip_eps=None,
    )
    state = _train(config, rewards, reference)
    found = jax.nn.softmax(state.params["logits"][0])
    distance = 0.5 * float(jnp.abs(found - optimum).sum())
    assert start > 0.1  # there was something to learn
    assert distance < 0.02, f"total variation {distance:.4f} from {start:.4f}"
    # The optimal objective is β · log E_ref[exp(r/β)], and the critic knows it.
    best = beta * jax.nn.logsumexp(log_ref + rewards / beta)
    assert float(state.params["values"][0]) == pytest.approx(float(best), abs=0.02)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)


GROUP = 4
K1: Any = {"kind": "k1", "place": "reward"}
K2: Any = {"kind": "k2", "place": "loss"}


def _preset(name, beta, kl=K1, size=1, **changes):
    """The policy that an algorithm makes of the bandit's reference."""
    reference, _, rewards, _ = _bandit()
    sampling = SamplingConfig(max_new_tokens=1, completions=size)
    row = {"kl": KLConfig(coef=beta, **kl)} | changes
    config = dataclasses.replace(POLICY_PRESETS[name](sampling), **row)
    state = _train(config, jnp.asarray(rewards), reference)
    return jax.nn.softmax(state.params["logits"][0])


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize(
    "name, kl, changes",
    [
        ("rloo", K1, {}),
        ("grpo", K1, {"scale": "none"}),
        ("rloo", K2, {"reduction": "sequence", "constant_length": None}),
        ("dr_grpo", K2, {}),
    ],
    ids=["rloo", "grpo-reward", "leave-one-out-k2", "dr_grpo-k2"],
)
def test_groups_reach_the_optimum_in_closed_form(name, kl, changes, beta):
    _, start, rewards, _ = _bandit()
    found = _preset(name, beta, kl, size=GROUP, **changes)
    # The mean of a group has the response itself in it, and its score counts
    # (G − 1)/G: beside a KL in the loss, which counts whole, β is as much larger.
    alone = name == "rloo" or kl is K1
    beta = beta if alone else beta * GROUP / (GROUP - 1)
    optimum = start * np.exp(rewards / beta)
    _assert_reached(found, optimum / optimum.sum(), start)


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["reinforce", "remax", "reinforce_pp"])
def test_reinforce_and_its_kin_reach_the_optimum_in_closed_form(name, beta):
    _, start, rewards, _ = _bandit()
    optimum = start * np.exp(rewards / beta)
    _assert_reached(_preset(name, beta), optimum / optimum.sum(), start)


def test_a_whitened_lead_beside_a_kl_in_the_loss_has_another_optimum():
    """REINFORCE++ with a baseline divides the lead by the batch's deviation, and not
    the KL: the leash is as much longer as the deviation is small.
    """
    beta = 0.3
    _, start, rewards, _ = _bandit()
    found = _preset("reinforce_pp_baseline", beta, K2, size=GROUP)
    optimum = start * np.exp(rewards / beta)
    assert 0.5 * np.abs(found - optimum / optimum.sum()).sum() > 0.06
    deviation = np.sqrt(np.sum(found * rewards**2) - np.sum(found * rewards) ** 2)
    deviation *= np.sqrt((GROUP - 1) / GROUP)  # of leads over means of groups
    factor = (GROUP - 1) / GROUP / deviation
    own = start * np.exp(rewards * factor / beta)
    _assert_reached(found, own / own.sum(), start)


def _every_pair(wins):
    """All pairs of arms, both ways round, as often as wins [i, j] says i won."""
    chosen, rejected = np.nonzero(~np.eye(ARMS, dtype=bool))
    rows = lambda arms: token_batch(
        [[0, arm] for arm in arms], mask=[[False, True] for _ in arms]
    )
    n = len(chosen)
    return PreferenceBatch(
        rows(chosen),
        rows(rejected),
        margin=jnp.zeros(n),
        weight=jnp.asarray(wins[chosen, rejected], jnp.float32),
        annotator=jnp.full(n, -1),
    )


def _prefer(config, wins, reference):
    """The policy that all pairs, in expectation, make of the reference."""
    pairs = _every_pair(wins)
    ref = reference_logps(reference, pairs, ref_apply_fn=tabular_policy)
    schedule = optax.linear_schedule(0.1, 0.0, UPDATES)
    state = create_state(tabular_policy, reference, optax.adam(schedule))
    update = lambda state, _: (
        preference_step(state, pairs, reference=ref, config=config)[0],
        None,
    )
    scan = jax.jit(lambda state: jax.lax.scan(update, state, length=UPDATES)[0])
    return jax.nn.softmax(scan(state).params["logits"][0])


def _bandit():
    """(reference, its probabilities, rewards, wins [i, j] by Bradley–Terry)."""
    reference = tabular_params(jax.random.key(1), ARMS)
    log_ref = np.asarray(jax.nn.log_softmax(reference["logits"][0]), np.float64)
    rewards = np.random.default_rng(0).uniform(-1, 1, ARMS)
    wins = 1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))
    return reference, np.exp(log_ref), rewards, wins


def _assert_reached(found, optimum, start):
    distance = lambda p: 0.5 * float(np.abs(np.asarray(p) - optimum).sum())
    assert distance(start) > 0.1  # there was something to learn
    assert distance(found) < 0.03, f"total variation {distance(found):.4f}"


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_dpo_reaches_the_optimum_in_closed_form(beta):
    reference, start, rewards, wins = _bandit()
    found = _prefer(PreferenceConfig(beta=beta), wins, reference)
    optimum = start * np.exp(rewards / beta)
    _assert_reached(found, optimum / optimum.sum(), start)


def test_robust_dpo_reaches_it_from_labels_of_which_some_are_flipped():
    reference, start, rewards, wins = _bandit()
    flipped = 0.8 * wins + 0.2 * wins.T
    of = lambda kind, eps: _prefer(
        PreferenceConfig(kind=kind, beta=0.3, label_smoothing=eps), flipped, reference
    )
    optimum = start * np.exp(rewards / 0.3)
    optimum /= optimum.sum()
    _assert_reached(of("robust", 0.2), optimum, start)
    assert 0.5 * np.abs(of("dpo", 0.0) - optimum).sum() > 0.03  # which is fooled


def test_ipo_reaches_its_own_optimum():
    # π ∝ π_ref exp(p/τ), p the share of wins over an arm drawn at random: eq. 7 of its
    # paper with Ψ = identity and pairs drawn evenly.
    reference, start, _, wins = _bandit()
    config = PreferenceConfig(kind="ipo", beta=0.1)
    optimum = start * np.exp(wins.mean(axis=1) / config.beta)
    _assert_reached(_prefer(config, wins, reference), optimum / optimum.sum(), start)


# Where f′(u) = x: u, for the optimum π = π_ref u(r/β − λ), and the largest x there is.
INVERSES = {
    "forward_kl": (lambda x: -1 / x, 0.0),
    "js": (lambda x: np.exp(x) / (2 - np.exp(x)), np.log(2)),
    "alpha": (lambda x: (1 - x / 2) ** -2, 2.0),
}


def _optimum(divergence, start, rewards, beta):
    """π_ref u(r/β − λ)."""
    inverse, largest = INVERSES[divergence]
    low, high = rewards.max() / beta - largest + 1e-9, 1e3
    for _ in range(100):  # λ for which π sums to 1
        middle = (low + high) / 2
        total = np.sum(start * inverse(rewards / beta - middle))
        low, high = (middle, high) if total > 1 else (low, middle)
    optimum = start * inverse(rewards / beta - low)
    np.testing.assert_allclose(optimum.sum(), 1, rtol=1e-6)
    return optimum


def test_k3_in_the_loss_reaches_the_optimum_of_the_forward_kl():
    """Its gradient is that of KL(π_ref ‖ π), and not of KL(π ‖ π_ref)."""
    beta = 0.3
    _, start, rewards, _ = _bandit()
    forward: Any = {"kind": "k3", "place": "loss"}
    found = _preset("rloo", beta, forward, size=GROUP)
    _assert_reached(found, _optimum("forward_kl", start, rewards, beta), start)
    optimum = start * np.exp(rewards / beta)
    assert 0.5 * np.abs(found - optimum / optimum.sum()).sum() > 0.06


@pytest.mark.parametrize("divergence", INVERSES)
def test_dpo_of_a_divergence_reaches_that_divergence_s_optimum(divergence):
    beta = 0.3
    reference, start, rewards, wins = _bandit()
    optimum = _optimum(divergence, start, rewards, beta)
    config = PreferenceConfig(beta=beta, divergence=divergence)
    found = _prefer(config, wins, reference)
    _assert_reached(found, optimum, start)
    kl_optimum = start * np.exp(rewards / beta)
    kl_optimum /= kl_optimum.sum()
    assert 0.5 * np.abs(found - kl_optimum).sum() > 0.06
