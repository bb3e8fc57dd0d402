"""Three log-probs of a token, by numpy from the full forward; sets that were kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit
from sampling.test_slots import (
    SAMPLING,
    apply_of,
    draw,
    drawn,
    params_of,
    ragged_prompts,
)
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.ops.logits import keep_only
from rlhf_jax.ops.logprobs import token_logprobs
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.steps import (
    KLConfig,
    PolicyConfig,
    create_policy_state,
    experience_step,
    policy_forward,
    policy_step,
)

VOCAB = 23
TRUNCATED = [
    {"top_k": 4},
    {"top_p": 0.8},
    {"min_p": 0.3},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.1, "slots": 3, "read_ahead": 2},
]
TAU = 0.7


@functools.cache
def _logits() -> jax.stages.Wrapped:
    return quick_jit(apply_of("rotary"))


def _full(batch) -> np.ndarray:
    """Float64 logits [B, T, V], index t about token t; column 0 means nothing."""
    logits = _logits()(params_of("rotary"), batch).logits
    return np.roll(np.asarray(logits, np.float64), 1, axis=1)


def _log_softmax(x):
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (x.max(-1, keepdims=True))
    )


def _possible(logits, top_k=None, top_p=None, min_p=None, **_):
    """Which tokens are left, bool [B, T, V]: one after the other, renormalised."""
    left = np.ones(logits.shape, bool)
    probs = lambda: np.exp(_log_softmax(np.where(left, logits, -np.inf)))
    if top_k is not None:
        left &= logits >= np.sort(logits, axis=-1)[..., -top_k, None]
    if top_p is not None:
        p = probs()
        more = p[..., None, :] > p[..., :, None]  # [.., v, w]: w is more probable
        left &= (more * p[..., None, :]).sum(-1) < top_p
    if min_p is not None:
        p = probs()
        left &= p >= min_p * p.max(-1, keepdims=True)
    return left


def _at(logits, batch):
    """Log-probs of the batch's tokens, where it has a mask."""
    tokens = np.asarray(batch.tokens)[..., None]
    chosen = np.take_along_axis(_log_softmax(logits), tokens, axis=-1)[..., 0]
    return chosen[np.asarray(batch.mask)]


@functools.cache
def _rollout(index, keep_sets=True):
    return drawn(temperature=TAU, keep_sets=keep_sets, **TRUNCATED[index])


@pytest.mark.parametrize("index, keep_sets", [(0, True), (3, True), (3, False)])
def test_three_logprobs_by_hand(index, keep_sets):
    """The policy's own, at τ, and over what truncation leaves at τ; τ = 0.7."""
    rollout = _rollout(index, keep_sets)
    batch, full = rollout.batch, _full(rollout.batch)
    left = _possible(full / TAU, **TRUNCATED[index])
    raw, tempered = _at(full, batch), _at(full / TAU, batch)
    processed = _at(np.where(left, full / TAU, -np.inf), batch)
    loss = processed if keep_sets else tempered
    mask = np.asarray(batch.mask)
    for found, expected in [
        (rollout.raw_logprobs, raw),
        (rollout.processed_logprobs, processed),
        (rollout.logprobs, loss),
    ]:
        np.testing.assert_allclose(np.asarray(found)[mask], expected, atol=1e-5)
        assert (np.asarray(found)[~mask] == 0).all()
    assert np.abs(raw - tempered).mean() > 0.1  # three different numbers
    assert (processed - tempered).mean() > 0.02 and (processed >= tempered).all()


def test_without_truncation_nothing_is_left_out():
    rollout = drawn(temperature=TAU)
    raw = _at(_full(rollout.batch), rollout.batch)
    found = np.asarray(rollout.raw_logprobs)[np.asarray(rollout.batch.mask)]
    np.testing.assert_allclose(found, raw, atol=1e-5)
    np.testing.assert_array_equal(rollout.processed_logprobs, rollout.logprobs)
    assert rollout.kept is None
    plain = drawn(temperature=1.0)
    np.testing.assert_array_equal(plain.raw_logprobs, plain.logprobs)


@pytest.mark.parametrize("index", range(len(TRUNCATED)))
def test_kept_sets_are_what_truncation_leaves(index):
    """Bit v of a token's ⌈23/8⌉ = 3 bytes, the most significant first."""
    rollout = _rollout(index)
    mask = np.asarray(rollout.batch.mask)
    kept = np.asarray(rollout.kept)
    assert kept.shape == (*mask.shape, 3) and kept.dtype == np.uint8
    assert (kept[~mask] == 255).all()
    bits = np.unpackbits(kept, axis=-1)[..., :VOCAB][mask] == 1
    left = _possible(_full(rollout.batch) / TAU, **TRUNCATED[index])[mask]
    np.testing.assert_array_equal(bits, left)
    tokens = np.asarray(rollout.batch.tokens)[mask]
    assert np.take_along_axis(bits, tokens[:, None], axis=1).all()
    assert bits.sum(axis=1).max() < VOCAB
    if "top_k" not in TRUNCATED[index]:
        assert len(set(bits.sum(axis=1).tolist())) > 3  # sets of several sizes


@pytest.mark.parametrize("index", range(len(TRUNCATED)))
def test_the_loss_sees_the_distribution_that_was_drawn_from(index):
    rollout = _rollout(index)
    np.testing.assert_array_equal(rollout.logprobs, rollout.processed_logprobs)
    look = lambda kept: policy_forward(
        _logits(), params_of("rotary"), rollout.batch, temperature=TAU, kept=kept
    )
    mask = np.asarray(rollout.batch.mask)
    found = look(rollout.kept)
    error = np.abs(found.logprobs - rollout.logprobs)[mask]
    assert error.max() < 1e-5
    assert np.abs(look(None).logprobs - rollout.logprobs)[mask].max() > 0.1
    assert np.isfinite(found.entropy)[mask].all()


def test_kept_sets_need_a_truncation():
    with pytest.raises(UserError, match="keep_sets=True: set it to False: without"):
        SAMPLING(keep_sets=True)


@pytest.mark.parametrize("slots", [None, 6])
def test_kept_sets_of_completions(slots):
    """A row has the sets of its own completion: those of the prompt repeated."""
    options = {"temperature": TAU, "top_p": 0.8, "keep_sets": True}
    found = drawn(completions=2, slots=slots, **options)
    again = draw(
        apply_of("rotary"),
        params_of("rotary"),
        jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), ragged_prompts()),
        key=jax.random.key(0),
        config=SAMPLING(**options),
        rows=found.row,
    )
    np.testing.assert_array_equal(found.kept, again.kept)
    np.testing.assert_array_equal(found.batch.tokens, again.batch.tokens)


def _ppo(keep_sets, forget=False):
    """One PPO iteration of a tabular policy whose sampler truncates."""
    config = PolicyConfig(
        sampling=SamplingConfig(
            5, temperature=TAU, top_k=3, stop_ids=(5,), keep_sets=keep_sets
        ),
        kl=KLConfig(coef=0.1),
        epochs=2,
        minibatches=4,
    )
    params = tabular_params(jax.random.key(1), 6)
    state = create_policy_state(tabular_policy, params, optax.sgd(0.1), kl_coef=0.1)
    prompts = token_batch(np.random.default_rng(0).integers(0, 6, (16, 3)))

    @quick_jit
    def run(state, key):
        rollout = generate(
            tabular_policy, params, prompts, key=key, config=config.sampling
        )
        if forget:
            rollout = dataclasses.replace(rollout, kept=None)
        scores = jnp.sin(jnp.arange(16.0))
        experience, objective = experience_step(
            state, params, rollout, scores, ref_apply_fn=tabular_policy, config=config
        )
        _, metrics = policy_step(state, experience, key=key, config=config)
        return objective + metrics

    return run(state, jax.random.key(2)).compute()


@pytest.mark.parametrize("keep_sets", [False, True])
def test_first_ratio_is_one(keep_sets):
    """And the reference, which is the policy itself, is 0 nats away."""
    found = _ppo(keep_sets)
    assert found["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert abs(found["objective/kl"]) < 1e-4
    assert found["policy/approx_kl"] > 1e-6  # later updates did move away
    assert np.isfinite(found["optim/grad_norm"]) and found["optim/grad_norm"] > 0


def test_first_ratio_is_not_one_without_the_kept_sets():
    """Whole over truncated distribution: what is left out is missing, a ratio < 1."""
    found = _ppo(True, forget=True)
    assert found["first/ratio"] < 0.95 and abs(found["objective/kl"]) > 0.1


def test_gradient_of_kept_sets():
    """Of log π(token 1 | {1, 2}): softmax over two; 0 and finite for the others.

    Logits 0 1 2 3 after the first token: π(1) = 1/(1 + e), so that the gradient is
    1 − π(1) = 0.7311 at 1 and −π(2) = −0.7311 at 2.
    """
    kept = jnp.packbits(jnp.array([[[1, 1, 1, 1], [0, 1, 1, 0]]]), axis=-1)
    tokens = jnp.array([[0, 1]])

    def logprob(logits):
        return token_logprobs(keep_only(logits, kept), tokens)[0, 1]

    gradient = jax.grad(logprob)(jnp.array([[[0.0, 1.0, 2.0, 3.0]] * 2]))
    expected = [[0.0, 0.7311, -0.7311, 0.0], [0.0] * 4]
    np.testing.assert_allclose(gradient[0], expected, atol=1e-4)
    assert (np.asarray(gradient)[0, 0, [0, 3]] == 0).all()
