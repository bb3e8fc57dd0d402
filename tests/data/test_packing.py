"""Packed rows: nothing lost, all in its place; tests/steps/test_exactness.py trains."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import (
    DataError,
    Demonstration,
    Preference,
    collate_demonstrations,
    collate_packed,
    collate_packed_preferences,
    pack,
    pack_experience,
)
from rlhf_jax.steps import episode_kl
from rlhf_jax.types import Experience, Rollout, TokenBatch


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


def episodes(lengths, columns=6):
    """GRPO's, padded on the left; every number of a token is the token."""
    real = np.arange(columns) >= columns - np.array(lengths)[:, None]
    tokens = 10 * np.arange(1, len(lengths) + 1)[:, None] + np.arange(columns)
    positions = np.where(real, np.cumsum(real, axis=1) - 1, 0)
    mask = real & (positions > 0)
    per_token: Any = np.where(real, tokens, -1).astype(np.float32)
    per_row: Any = np.arange(len(lengths))
    arrays: Any = (tokens, real.astype(np.int32), positions, mask)
    kept: Any = np.repeat(tokens[..., None], 2, axis=2).astype(np.uint8)
    rollout = Rollout(
        TokenBatch(*arrays), per_token, per_row > 1, per_row, per_token, per_token, kept
    )
    return Experience(
        rollout,
        ref_logprobs=None,
        values=None,
        rewards=per_token,
        advantages=per_token,
        returns=None,
        scores=per_row / 2,
    )


def test_packed_episodes_by_hand():
    """5 and 2 fill a row of 7, 3 and 1 are the other; a third makes three."""
    packed = pack_experience(episodes([3, 5, 1, 2]), width=7, multiple=3)
    batch = packed.rollout.batch
    assert batch.tokens.tolist() == [
        [13, 14, 15, 35, 0, 0, 0],
        [21, 22, 23, 24, 25, 44, 45],
        [0] * 7,
    ]
    assert batch.segment_ids.tolist() == [
        [1, 1, 1, 2, 0, 0, 0],
        [1, 1, 1, 1, 1, 2, 2],
        [0] * 7,
    ]
    assert batch.positions.tolist()[:2] == [
        [0, 1, 2, 0, 0, 0, 0],
        [0, 1, 2, 3, 4, 0, 1],
    ]
    np.testing.assert_array_equal(batch.mask, batch.positions > 0)
    np.testing.assert_array_equal(packed.advantages, batch.tokens)
    kept = np.asarray(packed.rollout.kept)
    np.testing.assert_array_equal(kept, np.stack([batch.tokens] * 2, axis=2))
    assert packed.ref_logprobs is None
    assert packed.rollout.row[:, :3].tolist() == [[0, 2, -1], [1, 3, -1], [-1] * 3]
    assert packed.scores[:2, :2].tolist() == [[0, 1], [0.5, 1.5]]
    assert packed.rollout.truncated.sum() == 2
    assert episode_kl(packed.rollout, jnp.asarray(packed.advantages))[1] == 4


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_no_token_of_an_episode_is_lost(lengths):
    alone = episodes(lengths)
    packed = pack_experience(alone, width=9)
    real = alone.rollout.batch.segment_ids > 0
    found = packed.rollout.batch.tokens[packed.rollout.batch.segment_ids > 0]
    assert sorted(found.tolist()) == sorted(alone.rollout.batch.tokens[real].tolist())
    rows = packed.rollout.row[packed.rollout.row >= 0]
    assert sorted(rows.tolist()) == list(range(len(lengths)))


def test_sides_of_a_pair_are_one_segment():
    group = (Preference((1,), (7, 2), ()), Preference((1, 3), (), (9, 8), margin=0.5))
    batch = collate_packed_preferences([group, ()], pairs=2, length=5, pad_id=0)
    assert batch.chosen.segment_ids.tolist() == [[1, 1, 1, 2, 2], [0] * 5]
    assert batch.rejected.segment_ids.tolist() == [[1, 2, 2, 2, 2], [0] * 5]
    assert batch.rejected.mask.tolist()[0] == [False, False, False, True, True]
    assert batch.weight.tolist() == [[1, 1], [0, 0]]
    assert batch.margin.tolist() == [[0, 0.5], [0, 0]]
    assert batch.annotator.dtype == np.int32


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="example 1 has 9 tokens: expected at most 8"):
        pack("ab", [3, 9], width=8)
    group = (Demonstration((1,), (7, 2)), Demonstration((1,), (8, 2)))
    with pytest.raises(DataError, match="6 tokens: expected at most 5"):
        collate_packed([group], collate=collate_demonstrations, length=5, pad_id=0)
    with pytest.raises(DataError, match="example 1 has 6 tokens: expected at most 5"):
        pack_experience(episodes([3, 6]), width=5)
    group = (Preference((1,), (7,), (2,)),) * 2
    with pytest.raises(DataError, match="2 pairs: expected at most 1"):
        collate_packed_preferences([group], pairs=1, length=9, pad_id=0)
