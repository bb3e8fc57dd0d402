"""Repeated n-grams, in numbers small enough to count."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import repetition
from rlhf_jax.rewards import repetition_reward


def share(ids, mask=None, **options):
    mask = np.ones(len(ids), bool) if mask is None else np.array(mask, bool)
    return float(repetition(jnp.array([ids]), jnp.array([mask]), **options)[0])


@pytest.mark.parametrize(
    "ids, ngram, expected",
    [
        ([7, 7, 7, 7], 1, 3 / 4),  # 1 of 4 is new
        ([7, 7, 7, 7], 2, 2 / 3),  # 77 77 77
        ([1, 2, 1, 2, 1], 2, 2 / 4),  # 12 21 12 21
        ([1, 2, 1, 2, 1], 3, 1 / 3),  # 121 212 121
        ([1, 2, 1, 3, 1], 2, 0.0),  # words come again, bigrams do not
        ([1, 2], 3, 0.0),  # there is none
    ],
)
def test_by_hand(ids, ngram, expected):
    assert share(ids, ngram=ngram) == pytest.approx(expected)


def test_no_ngram_reaches_over_a_hole():
    """12 12, and not the 21 between them, which a tool's token parts."""
    assert share([1, 2, 9, 1, 2], [1, 1, 0, 1, 1]) == 0.5
    assert share([1, 2, 1, 2, 1], [1, 0, 1, 0, 1]) == 0.0


def test_as_the_reward_counts_it():
    """Random tokens of a small vocabulary; the reward goes through Python's sets."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (40, 12))
    lengths = rng.integers(0, 13, 40)
    mask = np.arange(12)[None] < lengths[:, None]
    rows = [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]
    for ngram in (1, 2, 3):
        found = repetition(jnp.array(ids), jnp.array(mask), ngram=ngram)
        costs = repetition_reward(ngram)(completion_ids=rows)
        np.testing.assert_allclose(found, -np.array(costs), atol=1e-6)
        assert 0 < found.max() < 1


def test_ngrams_have_tokens():
    with pytest.raises(ValueError, match="ngram = 0, expected 1 or more"):
        share([1, 2], ngram=0)
