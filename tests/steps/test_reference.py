"""TR-DPO: a reference that follows the policy, by how much and when."""

import functools

import jax
import numpy as np
import pytest
from models.tiny import quick_jit
from steps.batches import network, task
from toys import tabular_policy

from rlhf_jax.steps import (
    PreferenceConfig,
    create_state,
    followed_state,
    following_step,
    preference_step,
)
from rlhf_jax.types import join_params

OPTIONS = {"ref_apply_fn": tabular_policy, "config": PreferenceConfig()}


def _follow(every, alpha, updates, frozen=None):
    """[(policy, reference, metrics)] after each update of SGD at rate 1."""
    _, state, batch = task("dpo")
    if frozen is not None:
        trained = {"logits": state.params["logits"]}
        state = create_state(state.apply_fn, trained, state.tx)
    step = functools.partial(
        following_step, step=preference_step, every=every, alpha=alpha, **OPTIONS
    )
    step, followed, found = quick_jit(step), followed_state(state), []
    for _ in range(updates):
        followed, metrics = step(followed, batch, frozen)
        found.append((followed.state.params, followed.ref_params, metrics.compute()))
    return found


def _logits(params):
    return np.asarray(params["logits"])


def test_soft_updates_average_after_every_update():
    start = _logits(network("policy", table=True)[1])
    reference = start
    for policy, found, _ in _follow(every=1, alpha=0.25, updates=3):
        reference = 0.25 * _logits(policy) + 0.75 * reference
        np.testing.assert_allclose(_logits(found), reference, rtol=1e-6)
    assert np.abs(reference - start).max() > 0.005


def test_hard_updates_copy_after_every_so_many():
    start = _logits(network("policy", table=True)[1])
    policies, references, metrics = zip(
        *_follow(every=2, alpha=1.0, updates=4), strict=True
    )
    expected = [start, *[_logits(policies[1])] * 2, _logits(policies[3])]
    for found, wanted in zip(references, expected, strict=True):
        np.testing.assert_array_equal(_logits(found), wanted)
    # Where policy and reference are the same, nothing leads, but for rounding: their
    # log-probs come from two programs, of which one has a backward pass.
    margins = [float(found["preference/margin"]) for found in metrics]
    np.testing.assert_allclose(margins[::2], 0, atol=1e-7)
    assert min(margins[1::2]) > 1e-4


def test_an_update_is_that_of_the_step_with_the_reference_before():
    _, state, batch = task("dpo")
    first, second = _follow(every=1, alpha=0.25, updates=2)
    step = quick_jit(functools.partial(preference_step, **OPTIONS))
    expected, _ = step(state.replace(params=first[0]), batch, first[1])
    np.testing.assert_allclose(
        _logits(second[0]), _logits(expected.params), rtol=1e-5, atol=1e-6
    )


def test_frozen_parameters_belong_to_both():
    _, state, _ = task("dpo")
    frozen = {"values": state.params["values"]}
    [(policy, reference, _)] = _follow(1, 0.25, 1, frozen)
    [(whole, _, _)] = _follow(1, 0.25, 1)
    assert set(policy) == set(reference) == {"logits"}
    assert set(join_params(frozen, reference)) == {"logits", "values"}
    np.testing.assert_allclose(_logits(policy), _logits(whole), atol=1e-6)


def test_the_state_s_buffers_may_be_donated():
    _, state, _ = task("dpo")
    followed = followed_state(state)
    jax.tree.map(lambda x: x.delete(), followed.state.params)
    assert np.isfinite(_logits(followed.ref_params)).all()
    network.cache_clear()  # whose parameters are gone


@pytest.mark.parametrize(
    "every, alpha, named",
    [(0, 1.0, "every = 0"), (1, 0.0, "alpha = 0.0"), (1, 1.1, "")],
)
def test_options_are_checked(every, alpha, named):
    with pytest.raises(ValueError, match=f"following_step: {named}"):
        _follow(every, alpha, 1)
