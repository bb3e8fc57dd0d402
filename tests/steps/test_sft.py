"""Supervised fine-tuning on a table of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.steps import create_state, sft_eval, sft_step


def _state(key, lr=1.0, vocab=5):
    params = tabular_params(key, vocab)
    return create_state(tabular_policy, params, optax.sgd(lr))


def test_learns_the_conditional_frequencies(key):
    # After token 1 comes 2 three times of four and 3 once: the maximum-likelihood
    # table has softmax(logits[1]) = (0, 0, .75, .25, 0).
    batch = token_batch([[1, 2], [1, 2], [1, 2], [1, 3]], mask=[[0, 1]] * 4)
    state = _state(key, lr=5.0)
    step = jax.jit(sft_step)
    for _ in range(400):
        state, _ = step(state, batch)
    _, metrics = step(state, batch)
    np.testing.assert_allclose(
        jax.nn.softmax(state.params["logits"][1]), [0, 0, 0.75, 0.25, 0], atol=0.01
    )
    # Entropy of (.75, .25): 0.562 nats, the lowest loss there is.
    assert metrics.compute()["sft/loss"] == pytest.approx(0.562, abs=0.01)


def test_prompt_tokens_are_not_learned(key):
    batch = token_batch([[1, 2, 3]], mask=[[0, 0, 1]])
    state, _ = jax.jit(sft_step)(_state(key), batch)
    changed = state.params["logits"] != _state(key).params["logits"]
    assert changed.any(axis=1).tolist() == [False, False, True, False, False]


def test_eval_is_the_loss_before_the_update(key):
    batch = token_batch([[1, 2, 3]], mask=[[0, 1, 1]])
    state = _state(key)
    before = sft_eval(state.params, batch, apply_fn=tabular_policy).compute()
    _, metrics = sft_step(state, batch)
    assert before["sft/loss"] == metrics.compute()["sft/loss"]


def test_donated_state_is_gone(key):
    devices = local_devices(2)
    state = replicate(_state(key), devices)
    axes = {"in_axes": (None, 0), "out_axes": None}
    step = data_parallel(sft_step, devices, **axes, donate_state=True)
    step(state, shard(token_batch(jnp.ones((2, 3))), devices))
    assert state.params["logits"].is_deleted()
