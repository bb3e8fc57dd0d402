"""Token ids to batches of one shape, on the host: pytrees of NumPy arrays.

Masks and padding come from lengths, never from ``token != pad``: pad may equal EOS.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.records import (
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
    TokenIds,
)
from rlhf_jax.data.row import DataError
from rlhf_jax.types import PreferenceBatch, TokenBatch


def left_padded(prompts: Sequence[TokenIds], *, length: int, pad_id: int) -> TokenBatch:
    """Prompts that all end in the last column, as generation wants them.

    No reference.

    Args:
      prompts: token ids of B prompts.
      length: columns T of the batch.
      pad_id: what stands before a prompt; any id.

    Returns:
      TokenBatch of NumPy arrays [B, T]. The mask is all False: the policy has emitted
      nothing yet.

    Raises:
      DataError: a prompt is longer than ``length``.

    >>> batch = left_padded([(1, 7), (1, 7, 8)], length=4, pad_id=0)
    >>> batch.tokens.tolist(), batch.positions.tolist()
    ([[0, 0, 1, 7], [0, 1, 7, 8]], [[0, 0, 0, 1], [0, 0, 1, 2]])
    """
    sizes = _sizes(prompts, length)
    positions = np.arange(length) - (length - sizes)[:, None]
    return _token_batch(prompts, positions, positions >= 0, pad_id, first=length)


def right_padded(
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    length: int,
    pad_id: int,
) -> TokenBatch:
    """Prompts with their completions from column 0 on; the mask owns the completions.

    No reference. The mask begins after the prompt, ends with the completion's last
    token, EOS as any other, and never holds column 0, which is not a prediction.

    Args:
      prompts: token ids of B prompts.
      completions: token ids of their completions.
      length: columns T of the batch.
      pad_id: what stands after a row; any id.

    Returns:
      TokenBatch of NumPy arrays [B, T].

    Raises:
      DataError: prompt and completion are longer than ``length``.

    >>> batch = right_padded([(1, 7)], [(8, 2)], length=5, pad_id=2)
    >>> batch.tokens.tolist(), batch.mask.astype(int).tolist()
    ([[1, 7, 8, 2, 2]], [[0, 0, 1, 1, 0]])
    """
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    sizes = _sizes(rows, length)
    positions = np.broadcast_to(np.arange(length), (len(rows), length))
    first = np.array([max(len(prompt), 1) for prompt in prompts], np.int32)[:, None]
    return _token_batch(rows, positions, positions < sizes[:, None], pad_id, first)


def collate_prompts(
    examples: Sequence[Prompt[TokenIds]], *, length: int | Sequence[int], pad_id: int
) -> TokenBatch:
    """Prompts for generation, left-padded. No reference.

    Args:
      examples: B tokenized prompts.
      length: columns T, at least ``max_prompt_length`` of their tokenizing; or several
        (buckets), of which the least that holds the longest prompt is taken: batches
        of short prompts then cost less, and each bucket compiles once.
      pad_id: any id.

    Returns:
      TokenBatch [B, T] with nothing in the mask.

    Raises:
      DataError: a prompt is longer than ``length``.

    >>> collate_prompts([Prompt((1, 7))], length=3, pad_id=0).segment_ids.tolist()
    [[0, 1, 1]]
    >>> collate_prompts([Prompt((1, 7))], length=(2, 4), pad_id=0).tokens.shape
    (1, 2)
    """
    prompts = [e.prompt for e in examples]
    if not isinstance(length, int):
        longest = max(map(len, prompts), default=0)
        length = min((n for n in length if n >= longest), default=max(length))
    return left_padded(prompts, length=length, pad_id=pad_id)


def collate_demonstrations(
    examples: Sequence[Demonstration[TokenIds]], *, length: int, pad_id: int
) -> TokenBatch:
    """Demonstrations, right-padded; the mask owns their completions. No reference.

    Args:
      examples: B tokenized demonstrations.
      length: columns T, at least ``max_length`` of their tokenizing.
      pad_id: any id.

    Returns:
      TokenBatch [B, T].

    Raises:
      DataError: a row is longer than ``length``.

    >>> batch = collate_demonstrations(
    ...     [Demonstration((1,), (7, 2))], length=4, pad_id=0)
    >>> batch.mask.astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    return right_padded(
        [e.prompt for e in examples],
        [e.completion for e in examples],
        length=length,
        pad_id=pad_id,
    )


def collate_labels(
    examples: Sequence[Labeled[TokenIds]], *, length: int, pad_id: int
) -> tuple[TokenBatch, np.ndarray]:
    """Labelled completions, right-padded, and their labels. No reference.

    Args:
      examples: B tokenized completions with labels.
      length: columns T, at least ``max_length`` of their tokenizing.
      pad_id: any id.

    Returns:
      (TokenBatch [B, T] whose mask owns the completions, labels [B] int32).

    Raises:
      DataError: a row is longer than ``length``.

    >>> collate_labels([Labeled((1,), (7, 2), label=1)], length=4, pad_id=0)[1]
    array([1], dtype=int32)
    """
    batch = right_padded(
        [e.prompt for e in examples],
        [e.completion for e in examples],
        length=length,
        pad_id=pad_id,
    )
    return batch, np.array([e.label for e in examples], np.int32)


def collate_preferences(
    examples: Sequence[Preference[TokenIds]], *, length: int, pad_id: int
) -> PreferenceBatch:
    """Both sides of preferences, right-padded to one length. No reference.

    Args:
      examples: B tokenized preferences.
      length: columns T, at least ``max_length`` of their tokenizing.
      pad_id: any id.

    Returns:
      PreferenceBatch of NumPy arrays; the masks own the completions.

    Raises:
      DataError: a side is longer than ``length``.

    >>> batch = collate_preferences(
    ...     [Preference((1, 7), (8, 2), (2,), weight=0.5)], length=4, pad_id=0)
    >>> batch.rejected.tokens.tolist(), batch.weight.tolist()
    ([[1, 7, 2, 0]], [0.5])
    """
    prompts = [e.prompt for e in examples]
    side = lambda completions: right_padded(
        prompts, completions, length=length, pad_id=pad_id
    )
    return PreferenceBatch(
        chosen=side([e.chosen for e in examples]),
        rejected=side([e.rejected for e in examples]),
        margin=_numpy([e.margin for e in examples], np.float32),
        weight=_numpy([e.weight for e in examples], np.float32),
        annotator=_numpy([e.annotator for e in examples], np.int32),
    )


def collate_rankings(
    examples: Sequence[Ranking[TokenIds]], *, length: int, pad_id: int
) -> tuple[TokenBatch, np.ndarray]:
    """The completions of rankings, right-padded, and their ranks. No reference.

    Args:
      examples: B tokenized rankings of K completions each.
      length: columns T, at least ``max_length`` of their tokenizing.
      pad_id: any id.

    Returns:
      (TokenBatch [B·K, T], the K completions of a prompt in successive rows;
      ranks [B, K] int32, 0 the best).

    Raises:
      DataError: a row is longer than ``length``, or K is not the same everywhere.

    >>> batch, ranks = collate_rankings(
    ...     [Ranking((1,), ((7, 2), (2,)), ranks=(0, 1))], length=3, pad_id=0)
    >>> batch.tokens.tolist(), ranks.tolist()
    ([[1, 7, 2], [1, 2, 0]], [[0, 1]])
    """
    for index, example in enumerate(examples):
        if len(example.completions) != len(examples[0].completions):
            raise DataError(
                f"{example.origin or f'example {index}'}: "
                f"{len(example.completions)} completions, but "
                f"{len(examples[0].completions)} in the first ranking of the batch; "
                f"train on their pairs (ranking_pairs), or give each the same number"
            )
    batch = right_padded(
        [e.prompt for e in examples for _ in e.completions],
        [completion for e in examples for completion in e.completions],
        length=length,
        pad_id=pad_id,
    )
    return batch, np.array([e.ranks for e in examples], np.int32)


def _sizes(rows: Sequence[TokenIds], length: int) -> np.ndarray:
    for index, row in enumerate(rows):
        if len(row) > length:
            raise DataError(
                f"row {index} of the batch has {len(row)} tokens, more than "
                f"length={length}; give the length that the rows were tokenized for"
            )
    return np.array([len(row) for row in rows], np.int32)


def _token_batch(
    rows: Sequence[TokenIds],
    positions: np.ndarray,
    real: np.ndarray,
    pad_id: int,
    first: np.ndarray | int,
) -> TokenBatch:
    """Rows where ``real`` [B, T] says; the mask owns positions from ``first`` on."""
    tokens = np.full(real.shape, pad_id, np.int32)
    tokens[real] = [token for row in rows for token in row]
    return TokenBatch(
        tokens=_numpy(tokens, np.int32),
        segment_ids=_numpy(real, np.int32),
        positions=_numpy(np.where(real, positions, 0), np.int32),
        mask=_numpy(real & (positions >= first), np.bool_),
    )


def _numpy(values: Any, dtype: type) -> Any:
    """A NumPy array; Any, because the batches' fields are annotated as JAX arrays."""
    return np.asarray(values, dtype)
