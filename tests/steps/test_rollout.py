"""From prompts to experience, on a table of logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    KLConfig,
    PolicyConfig,
    create_policy_state,
    experience_step,
    sample_step,
    shape_scores,
)

VOCAB = 5
CONFIG = PolicyConfig(
    sampling=SamplingConfig(max_new_tokens=6, temperature=0.7, stop_ids=(4,)),
    kl=KLConfig(coef=0.1),
)


def _rollout(key, config=CONFIG, rows=64):
    params = tabular_params(key, VOCAB)
    params["values"] = jnp.linspace(-1.0, 1.0, VOCAB)
    state = create_policy_state(
        tabular_policy, params, optax.sgd(0.1), kl_coef=config.kl.coef
    )
    prompts = token_batch([[0, 1, 2]] * rows, real=[[0, 1, 1]] * rows)
    sample = functools.partial(
        sample_step, apply_fn=tabular_policy, config=config.sampling
    )
    return state, jax.jit(sample)(params, prompts, jnp.arange(rows), key=key)


def _experience(key, config=CONFIG, scores=None, **kwargs):
    state, rollout = _rollout(key, config)
    reference = tabular_params(jax.random.key(7), VOCAB)
    scores = jnp.arange(64.0) / 64 if scores is None else scores
    step = functools.partial(
        experience_step, ref_apply_fn=tabular_policy, config=config
    )
    return *jax.jit(step)(state, reference, rollout, scores), reference


def test_rewards_sum_to_score_minus_kl(key):
    experience, metrics, reference = _experience(key)
    mask = np.asarray(experience.rollout.batch.mask)
    tokens = np.asarray(experience.rollout.batch.tokens)
    table = jax.nn.log_softmax(reference["logits"] / 0.7)
    ref = np.asarray(table)[tokens[:, :-1], tokens[:, 1:]]
    kl = np.asarray(experience.rollout.logprobs)[:, 1:] - ref
    kl = np.where(mask[:, 1:], kl, 0).sum(1)
    score = np.where(experience.rollout.truncated, -1.0, np.arange(64) / 64)
    np.testing.assert_allclose(experience.rewards.sum(1), score - 0.1 * kl, atol=1e-5)
    found = metrics.compute()
    assert found["objective/kl"] == pytest.approx(kl.mean(), rel=1e-5)
    assert found["objective/score"] == pytest.approx(score.mean(), rel=1e-5)
    assert found["objective/non_score_reward"] == pytest.approx(
        -0.1 * kl.mean(), rel=1e-4
    )
    assert found["objective/kl_coef"] == pytest.approx(0.1)
    assert found["rollout/response_length"] == mask.sum() / 64
    truncated = np.asarray(experience.rollout.truncated)
    assert 0 < truncated.sum() < 64  # the test sees both kinds
    assert found["rollout/ended"] == pytest.approx(1 - truncated.mean())


@pytest.mark.fault(18)
def test_score_sits_on_the_last_response_token(key):
    config = dataclasses.replace(CONFIG, kl=KLConfig(coef=0.0), missing_stop="keep")
    experience, _, _ = _experience(key, config, scores=jnp.full(64, 3.0))
    mask = np.asarray(experience.rollout.batch.mask)
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    expected = np.zeros(mask.shape)
    expected[np.arange(64), last] = 3.0
    np.testing.assert_array_equal(experience.rewards, expected)


def test_values_speak_of_the_state_before_the_token(key):
    experience, _, _ = _experience(key)
    tokens, mask = experience.rollout.batch.tokens, experience.rollout.batch.mask
    table = np.linspace(-1.0, 1.0, VOCAB, dtype=np.float32)
    expected = np.where(mask[:, 1:], table[np.asarray(tokens)[:, :-1]], 0)
    np.testing.assert_array_equal(experience.values[:, 1:], expected)


def test_advantages_are_whitened_and_returns_are_not(key):
    experience, _, _ = _experience(key)
    mask = np.asarray(experience.rollout.batch.mask)
    advantages = np.asarray(experience.advantages)[mask]
    assert advantages.mean() == pytest.approx(0, abs=1e-5)
    assert advantages.std() == pytest.approx(1, abs=1e-4)
    # λ = .95, γ = 1: the last token's return is its reward.
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    rows = np.arange(64)
    np.testing.assert_allclose(
        np.asarray(experience.returns)[rows, last],
        np.asarray(experience.rewards)[rows, last],
        rtol=1e-5,
        atol=1e-6,
    )


def test_whitened_rewards_keep_their_mean(key):
    plain, _, _ = _experience(key)
    config = dataclasses.replace(CONFIG, whiten_rewards=True)
    white, _, _ = _experience(key, config)
    mask = np.asarray(plain.rollout.batch.mask)
    raw = np.asarray(plain.rewards)[mask]
    expected = (raw - raw.mean()) / raw.std() + raw.mean()
    np.testing.assert_allclose(
        np.asarray(white.rewards)[mask], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [("keep", [2.0, 3.0]), ("replace", [2.0, -1.0]), ("subtract", [2.0, 2.0])],
)
def test_missing_stop_token(rule, expected):
    config = PolicyConfig(missing_stop=rule)
    shaped = shape_scores(jnp.array([2.0, 3.0]), jnp.array([False, True]), config)
    assert shaped.tolist() == expected


def test_scores_are_never_integers():
    scores = jnp.array([3, 2], jnp.int32)
    shaped = shape_scores(
        scores, jnp.array([False, False]), PolicyConfig(score_clip=2.5)
    )
    assert shaped.tolist() == [2.5, 2.0]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"gamma": 1.5}, "gamma"),
        ({"clip_eps": 0}, "clip_eps"),
    ],
)
def test_impossible_settings_name_the_option(wrong, name):
    with pytest.raises(UserError, match=name):
        PolicyConfig(**wrong)


def test_policy_without_critic_is_refused(key):
    state, rollout = _rollout(key)
    bare = lambda params, batch, **_: tabular_policy(params, batch)._replace(
        values=None
    )
    with pytest.raises(ValueError, match="no critic"):
        experience_step(
            state.replace(apply_fn=bare),
            state.params,
            rollout,
            jnp.zeros(64),
            ref_apply_fn=bare,
            config=CONFIG,
        )
