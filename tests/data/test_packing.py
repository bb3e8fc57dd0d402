"""Packed rows: nothing lost, nothing seen of the neighbour, the same update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import quick_jit, randomize

from rlhf_jax.data import (
    DataError,
    Demonstration,
    collate_demonstrations,
    collate_packed,
    pack,
)
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.steps import create_state, sft_step

MODEL = TransformerConfig(
    vocab_size=23,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=4,
    d_ff=24,
    max_length=16,
)


@given(st.lists(st.integers(1, 12), max_size=60))
def test_every_example_is_in_one_row_that_holds_it(lengths):
    examples = list(range(len(lengths)))
    groups = pack(examples, lengths, width=12)
    assert sorted(i for group in groups for i in group) == examples
    sizes = [sum(lengths[i] for i in group) for group in groups]
    assert all(0 < size <= 12 for size in sizes)
    # Any two rows would not fit into one: less than half is padding, but for one row.
    assert sum(size <= 6 for size in sizes) <= 1


def test_best_fit_by_hand():
    """6 leaves 4, 5 leaves 5: the 4 goes to the first, 3 and 2 to the second."""
    assert pack("vwxyz", [5, 6, 3, 4, 2], width=10) == [("v", "x", "z"), ("w", "y")]


def demonstrations(count):
    rng = np.random.default_rng(0)
    draw = lambda least, most: tuple(
        rng.integers(1, 23, rng.integers(least, most)).tolist()
    )
    return [Demonstration(draw(0, 4), draw(1, 9)) for _ in range(count)]


@pytest.mark.parametrize("whole", [True, False])
def test_a_packed_update_is_that_of_rows_of_their_own(whole):
    """16 demonstrations in 16 rows, and in as few rows of 16 tokens as hold them."""
    examples = demonstrations(16)
    lengths = [len(e.prompt + e.completion) for e in examples]
    groups = pack(examples, lengths, width=16)
    assert len(groups) < 11
    parts = 1 if whole else len(groups)
    packed = collate_packed(groups, collate=collate_demonstrations, length=16, pad_id=0)
    alone = collate_demonstrations(examples, length=16, pad_id=0)
    assert packed.mask.sum() == alone.mask.sum()
    init = quick_jit(lambda key: init_params(CausalLM(MODEL), key=key))
    params = randomize(init(jax.random.key(1)))
    state = create_state(policy_apply(MODEL), params, optax.sgd(1.0))
    step = quick_jit(sft_step, static_argnames="micro_batches")
    one, expected = step(state, jax.tree.map(jnp.asarray, alone))
    other, found = step(state, jax.tree.map(jnp.asarray, packed), micro_batches=parts)
    for x, y in zip(
        jax.tree.leaves(other.params), jax.tree.leaves(one.params), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert found.compute() == pytest.approx(expected.compute(), rel=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="example 1 has 9 tokens: expected at most 8"):
        pack("ab", [3, 9], width=8)
    group = (Demonstration((1,), (7, 2)), Demonstration((1,), (8, 2)))
    with pytest.raises(DataError, match="6 tokens: expected at most 5"):
        collate_packed([group], collate=collate_demonstrations, length=5, pad_id=0)
