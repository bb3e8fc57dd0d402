"""Batches: hand-made ones, then a loop over random lengths, with pad = EOS as well."""

import random

import jax
import numpy as np
import pytest

from rlhf_jax.data import (
    DataError,
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
    collate_demonstrations,
    collate_labels,
    collate_preferences,
    collate_prompts,
    collate_rankings,
    left_padded,
    right_padded,
)
from rlhf_jax.types import TokenBatch

DTYPES = {
    "tokens": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "mask": np.bool_,
}


def as_lists(batch: TokenBatch) -> dict[str, list]:
    for name, dtype in DTYPES.items():
        array = getattr(batch, name)
        assert type(array) is np.ndarray and array.dtype == dtype
    return {name: getattr(batch, name).astype(int).tolist() for name in DTYPES}


def random_row(rng: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(4) for _ in range(rng.randint(least, most)))


@pytest.mark.fault(19)
def test_right_padded_by_hand():
    # Row 0: prompt of 2, completion of 2, one pad. Row 1: no prompt, so column 0 is
    # not in the mask. Row 2: a completion that is EOS alone, and pad = EOS = 2.
    batch = right_padded([(1, 7), (), (1,)], [(8, 2), (8, 2), (2,)], length=5, pad_id=2)
    assert as_lists(batch) == {
        "tokens": [[1, 7, 8, 2, 2], [8, 2, 2, 2, 2], [1, 2, 2, 2, 2]],
        "segment_ids": [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]],
        "positions": [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]],
        "mask": [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]],
    }


@pytest.mark.fault(19)
def test_left_padded_by_hand():
    assert as_lists(left_padded([(1, 7), (1, 7, 8, 9)], length=4, pad_id=1)) == {
        "tokens": [[1, 1, 1, 7], [1, 7, 8, 9]],
        "segment_ids": [[0, 0, 1, 1], [1, 1, 1, 1]],
        "positions": [[0, 0, 0, 1], [0, 1, 2, 3]],
        "mask": [[0, 0, 0, 0], [0, 0, 0, 0]],
    }


@pytest.mark.parametrize("seed", range(20))
def test_padding_against_a_loop(seed):
    rng = random.Random(seed)
    length, pad_id = 9, rng.randrange(4)
    prompts = [random_row(rng, 0, 4) for _ in range(5)]
    completions = [random_row(rng, 1, 5) for _ in prompts]
    right = as_lists(right_padded(prompts, completions, length=length, pad_id=pad_id))
    left = as_lists(left_padded(completions, length=length, pad_id=pad_id))
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        row, pad = prompt + completion, length - len(prompt) - len(completion)
        assert right["tokens"][b] == [*row, *[pad_id] * pad]
        assert right["segment_ids"][b] == [1] * len(row) + [0] * pad
        assert right["positions"][b] == [*range(len(row)), *[0] * pad]
        owned = [int(t >= len(prompt) and t > 0) for t in range(len(row))]
        assert right["mask"][b] == owned + [0] * pad
        pad = length - len(completion)
        assert left["tokens"][b] == [*[pad_id] * pad, *completion]
        assert left["segment_ids"][b] == [0] * pad + [1] * len(completion)
        assert left["positions"][b] == [*[0] * pad, *range(len(completion))]


def test_collated_preferences():
    pairs = [
        Preference((1, 7), (8, 2), (2,), annotator=3, margin=0.5, weight=0.25),
        Preference((1,), (2,), (8, 9, 2)),
    ]
    batch = collate_preferences(pairs, length=5, pad_id=0)
    for side, completions in (
        (batch.chosen, [(8, 2), (2,)]),
        (batch.rejected, [(2,), (8, 9, 2)]),
    ):
        wanted = right_padded([(1, 7), (1,)], completions, length=5, pad_id=0)
        assert as_lists(side) == as_lists(wanted)
    assert batch.margin.tolist() == [0.5, 0.0] and batch.margin.dtype == np.float32
    assert batch.weight.tolist() == [0.25, 1.0] and batch.weight.dtype == np.float32
    assert batch.annotator.tolist() == [3, -1] and batch.annotator.dtype == np.int32
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))


def test_collated_rankings_keep_the_completions_of_a_prompt_together():
    rankings = [
        Ranking((1, 7), ((8, 2), (2,), (9, 2)), (1, 0, 1)),
        Ranking((1,), ((2,), (8, 2), (9, 2)), (0, 1, 2)),
    ]
    batch, ranks = collate_rankings(rankings, length=4, pad_id=0)
    assert batch.tokens.tolist() == [
        [1, 7, 8, 2], [1, 7, 2, 0], [1, 7, 9, 2],
        [1, 2, 0, 0], [1, 8, 2, 0], [1, 9, 2, 0],
    ]  # fmt: skip
    assert ranks.tolist() == [[1, 0, 1], [0, 1, 2]] and ranks.dtype == np.int32


def test_the_other_collates():
    wanted = as_lists(right_padded([(1,)], [(8, 2)], length=4, pad_id=0))
    demonstration = Demonstration((1,), (8, 2))
    batch = collate_demonstrations([demonstration], length=4, pad_id=0)
    assert as_lists(batch) == wanted
    labeled = [Labeled((1,), (8, 2), 0)]
    batch, labels = collate_labels(labeled, length=4, pad_id=0)
    assert as_lists(batch) == wanted
    assert labels.tolist() == [0] and labels.dtype == np.int32
    batch = collate_prompts([Prompt((1, 8))], length=4, pad_id=0)
    assert as_lists(batch) == as_lists(left_padded([(1, 8)], length=4, pad_id=0))


def test_rows_longer_than_the_batch():
    message = "row 1 of the batch has 4 tokens, more than length=3; give the length"
    with pytest.raises(DataError, match=message):
        right_padded([(1,), (1, 7)], [(2,), (8, 2)], length=3, pad_id=0)
    with pytest.raises(DataError, match=message):
        left_padded([(1,), (1, 7, 8, 9)], length=3, pad_id=0)


def test_rankings_of_different_sizes():
    rankings = [
        Ranking((1,), ((2,), (8, 2)), (0, 1)),
        Ranking((1,), ((2,), (8, 2), (9, 2)), (0, 1, 2), origin="rows.jsonl:7"),
    ]
    message = r"rows\.jsonl:7: 3 completions, but 2 in the first .*ranking_pairs"
    with pytest.raises(DataError, match=message):
        collate_rankings(rankings, length=4, pad_id=0)
