"""Several sequences in one row, so that short ones leave no padding behind."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from rlhf_jax.data.sources import DataError
from rlhf_jax.types import TokenBatch

Example = TypeVar("Example")


def pack(
    examples: Sequence[Example], lengths: Sequence[int], *, width: int
) -> list[tuple[Example, ...]]:
    """Groups of examples that share a row: the longest first, each where it fits best.

    Best-fit decreasing (Johnson 1974), as for language models in arXiv:2404.10830. No
    example is cut or left out.

    Args:
      examples: anything.
      lengths: tokens of each.
      width: tokens of a row at most.

    Returns:
      The groups, in the order of their first examples.

    Raises:
      DataError: an example is longer than a row.

    >>> pack("abcd", [5, 2, 3, 4], width=7)
    [('a', 'b'), ('c', 'd')]
    """
    rows: list[list[int]] = []
    left: dict[int, list[int]] = {}  # rows with so many tokens left
    spaces: list[int] = []  # its keys, in order
    for i in sorted(range(len(examples)), key=lambda i: -lengths[i]):
        if lengths[i] > width:
            raise DataError(
                f"example {i} has {lengths[i]} tokens: expected at most {width}, the "
                "width of a packed row"
            )
        at = bisect.bisect_left(spaces, lengths[i])
        if at == len(spaces):
            rows.append([])
            space, row = width, len(rows) - 1
        else:
            space = spaces[at]
            row = left[space].pop()
            if not left[space]:
                del left[space], spaces[at]
        rows[row].append(i)
        rest = space - lengths[i]
        if rest not in left:
            bisect.insort(spaces, rest)
        left.setdefault(rest, []).append(row)
    groups = sorted(sorted(row) for row in rows)
    return [tuple(examples[i] for i in group) for group in groups]


def collate_packed(
    groups: Sequence[Sequence[Example]],
    *,
    collate: Callable[..., TokenBatch],
    length: int,
    pad_id: int,
) -> TokenBatch:
    """Groups of `pack`, a row each, their sequences one after the other. No reference.

    A sequence sees itself alone: it has a segment and positions of its own. What is
    learned of it is what ``collate`` says, so that a packed batch has the loss and the
    gradient of the same sequences in rows of their own.

    Args:
      groups: B groups of tokenized examples.
      collate: of examples in rows of their own, right-padded; takes ``length`` and
        ``pad_id``.
      length: columns T.
      pad_id: what stands after a row; any id.

    Returns:
      TokenBatch of NumPy arrays [B, T].

    Raises:
      DataError: a group has more than ``length`` tokens.

    >>> from rlhf_jax.data import Demonstration, collate_demonstrations
    >>> group = (Demonstration((1,), (7, 2)), Demonstration((1,), (8, 2)))
    >>> batch = collate_packed(
    ...     [group], collate=collate_demonstrations, length=7, pad_id=0)
    >>> batch.tokens.tolist(), batch.segment_ids.tolist()
    ([[1, 7, 2, 1, 8, 2, 0]], [[1, 1, 1, 2, 2, 2, 0]])
    >>> batch.positions.tolist(), batch.mask.astype(int).tolist()
    ([[0, 1, 2, 0, 1, 2, 0]], [[0, 1, 1, 0, 1, 1, 0]])
    """
    shape = (len(groups), length)
    tokens = np.full(shape, pad_id, np.int32)
    segment_ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    for row, group in enumerate(groups):
        alone = collate(group, length=length, pad_id=pad_id)
        real = alone.segment_ids > 0
        total = int(real.sum())
        if total > length:
            raise DataError(
                f"a group of {total} tokens: expected at most {length}, the length of "
                "a row"
            )
        tokens[row, :total] = alone.tokens[real]
        segment_ids[row, :total] = np.nonzero(real)[0] + 1
        positions[row, :total] = alone.positions[real]
        mask[row, :total] = alone.mask[real]
    arrays: Any = (tokens, segment_ids, positions, mask)
    return TokenBatch(*arrays)
