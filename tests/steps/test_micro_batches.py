"""Micro-batches: memory, nothing to learn, what is refused; see test_exactness.py."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from steps.batches import task
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.steps import PolicyConfig, PreferenceConfig, create_state, sft_step


def test_nothing_to_learn_changes_nothing():
    step, state, batch = task("sft", 2)
    after, _ = step(state, dataclasses.replace(batch, mask=batch.mask & False))
    chex.assert_trees_all_equal(after.params, state.params)


def test_activations_of_one_part_are_all_there_is():
    """The compiler plans half the temporary memory, or less, for four parts."""

    params = tabular_params(jax.random.key(0), 512)
    state = create_state(tabular_policy, params, optax.sgd(1.0))
    batch = token_batch(np.zeros((16, 128), int))

    def bytes_of(parts):
        step = jax.jit(functools.partial(sft_step, micro_batches=parts))
        planned = step.lower(state, batch).compile().memory_analysis()
        assert planned is not None
        return planned.temp_size_in_bytes

    assert bytes_of(4) < bytes_of(1) / 2


def test_parts_that_do_not_divide_the_rows_are_refused():
    step, state, batch = task("sft", 3)
    with pytest.raises(ValueError, match="micro_batches = 3 of 16 rows"):
        step(state, batch)
    for config in (PolicyConfig, PreferenceConfig):
        with pytest.raises(UserError, match="micro_batches = 0"):
            config(micro_batches=0)
