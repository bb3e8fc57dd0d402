"""Several sequences in one row, so that short ones leave no padding behind."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rlhf_jax.data.batching import collate_demonstrations
from rlhf_jax.data.records import Demonstration, Preference, TokenIds
from rlhf_jax.data.row import DataError
from rlhf_jax.types import Experience, PreferenceBatch, TokenBatch

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


def collate_packed_preferences(
    groups: Sequence[Sequence[Preference[TokenIds]]],
    *,
    pairs: int,
    length: int,
    pad_id: int,
) -> PreferenceBatch:
    """Groups of `pack`, a row each: chosen sides in one batch, rejected in the other.

    No reference. The sides of a pair are the same segment of the same row, so that a
    cut between rows, for devices or micro-batches, never parts them. Both sides fit if
    `pack` is told the length of the longer.

    Args:
      groups: B groups of tokenized preferences.
      pairs: S, at least the number in any group; the same in every batch, so that a
        step compiles once.
      length: columns T.
      pad_id: what stands after a row; any id.

    Returns:
      PreferenceBatch of NumPy arrays; margin, weight and annotator are [B, S], of
      weight 0 where there is no pair.

    Raises:
      DataError: a group has more than ``pairs`` pairs, or ``length`` tokens on a side.

    >>> group = (Preference((1,), (7, 2), (2,)), Preference((1,), (8,), (9,), weight=3))
    >>> batch = collate_packed_preferences([group], pairs=3, length=5, pad_id=0)
    >>> batch.rejected.tokens.tolist(), batch.rejected.segment_ids.tolist()
    ([[1, 2, 1, 9, 0]], [[1, 1, 2, 2, 0]])
    >>> batch.weight.tolist()
    [[1.0, 3.0, 0.0]]
    """
    for group in groups:
        if len(group) > pairs:
            raise DataError(f"a group of {len(group)} pairs: expected at most {pairs}")

    def side(completion: Callable[[Preference[TokenIds]], TokenIds]) -> TokenBatch:
        alone = [[Demonstration(e.prompt, completion(e)) for e in g] for g in groups]
        return collate_packed(
            alone, collate=collate_demonstrations, length=length, pad_id=pad_id
        )

    def numbers(of: Callable[[Preference[TokenIds]], float], dtype: type, rest: float):
        rows = [[of(e) for e in g] + [rest] * (pairs - len(g)) for g in groups]
        array: Any = np.array(rows, dtype)
        return array

    return PreferenceBatch(
        chosen=side(lambda e: e.chosen),
        rejected=side(lambda e: e.rejected),
        margin=numbers(lambda e: e.margin, np.float32, 0),
        weight=numbers(lambda e: e.weight, np.float32, 0),
        annotator=numbers(lambda e: e.annotator, np.int32, -1),
    )


def pack_experience(
    experience: Experience, *, width: int, multiple: int = 1
) -> Experience:
    """Episodes in as few rows as `pack` finds, for the updates. No reference.

    Numbers of a token stay with it, so that an update of the whole batch has the loss
    and the gradient of unpacked rows; minibatches are then drawn among packed rows.

    Args:
      experience: an Experience of NumPy or JAX arrays [B, T], one
        episode a row, padded on any side.
      width: columns W of a packed row.
      multiple: what the number of rows is a multiple of, by empty rows at the end:
        devices · minibatches · micro-batches, or more, since a step is compiled for
        each number of rows.

    Returns:
      The experience as NumPy arrays [R, W]. Arrays [B] become [R, W] too: entry s − 1
      is of segment s; the others are 0, those of ``rollout.row`` −1.

    Raises:
      DataError: an episode has more than ``width`` tokens.
    """
    rollout = experience.rollout
    real = np.asarray(rollout.batch.segment_ids) > 0
    groups: list[Sequence[int]] = [
        *pack(range(len(real)), real.sum(axis=1).tolist(), width=width)
    ]
    groups += [()] * (-len(groups) % multiple)
    episode = np.array([i for group in groups for i in group], np.int32)
    row = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    nth = np.concatenate([np.arange(len(group)) for group in groups])
    # Where the tokens come from, row by row as they will stand, and where they go.
    index, column = np.nonzero(real[episode])
    sizes = np.bincount(row[index], minlength=len(groups))
    to = row[index], np.arange(len(index)) - (np.cumsum(sizes) - sizes)[row[index]]

    def place(x: Any, fill: int = 0) -> Any:
        x = np.asarray(x)
        packed = np.full((len(groups), width, *x.shape[2:]), fill, x.dtype)
        if x.ndim == 1:
            packed[row, nth] = x[episode]
        else:
            packed[to] = x[episode[index], column]
        return packed

    packed = jax.tree.map(place, experience)
    segment_ids = np.zeros((len(groups), width), np.int32)
    segment_ids[to] = 1 + nth[index]
    batch = packed.rollout.batch.replace(segment_ids=segment_ids)
    row_ids = place(rollout.row, fill=-1)
    return packed.replace(rollout=packed.rollout.replace(batch=batch, row=row_ids))
