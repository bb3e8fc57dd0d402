"""Rollouts on a mesh, with weights that lie elsewhere than those of the update."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import quick_jit
from sampling.test_slots import BUDGET, SAMPLING, apply_of, params_of, ragged_prompts

from rlhf_jax.sharding import (
    make_mesh,
    on_mesh,
    place_batch,
    place_state,
    state_shardings,
)
from rlhf_jax.steps import sample_step


@pytest.mark.parametrize("options", [{}, {"slots": 6}, {"completions": 3}])
def test_weights_of_an_update_draw_the_same_where_rollouts_want_them(options):
    """From parts over fsdp = 4 to parts over tensor = 2, on the same devices."""
    prompts = jax.tree.map(lambda x: x[:8], ragged_prompts())
    asked = prompts, jnp.arange(8, dtype=jnp.int32)
    step = functools.partial(
        sample_step, apply_fn=apply_of("rotary"), config=SAMPLING(**options)
    )
    key, params = jax.random.key(0), params_of("rotary")
    trained = place_state(params, make_mesh(jax.devices()[:4], fsdp=4))
    mesh = make_mesh(jax.devices()[:4], tensor=2)
    held = jax.device_put(trained, state_shardings(trained, mesh))
    kernel = held["trunk"]["blocks"]["attn"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 16, 8)

    found = quick_jit(on_mesh(step, mesh))(held, *place_batch(asked, mesh), key=key)
    expected = quick_jit(step)(params, *asked, key=key)
    assert expected.batch.mask.sum() > 8 * BUDGET / 3
    np.testing.assert_array_equal(found.batch.tokens, expected.batch.tokens)
    chex.assert_trees_all_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)


def test_keys_and_values_are_cut_over_rows_and_heads():
    """Of [8 rows, 2 heads, 4, 16 columns] fsdp 2 · tensor 2 have half of both each."""
    mesh = make_mesh(jax.devices()[:4], fsdp=2, tensor=2)
    prompts = jax.tree.map(lambda x: x[:8], ragged_prompts())
    asked = place_batch((prompts, jnp.arange(8, dtype=jnp.int32)), mesh)
    step = functools.partial(
        sample_step, apply_fn=apply_of("rotary"), config=SAMPLING()
    )
    held, key = place_state(params_of("rotary"), mesh), jax.random.key(0)
    program = quick_jit(on_mesh(step, mesh)).lower(held, *asked, key=key).compile()
    text = program.as_text() or ""
    keys = set(re.findall(r"f32\[(\d+),(\d+),4,16\]", text))
    assert keys == {("4", "1")}
