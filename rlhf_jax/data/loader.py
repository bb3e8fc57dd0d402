"""Batches of examples: endless and resumable for training, complete for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import grain
import numpy as np

from rlhf_jax.data.row import DataError

Example = TypeVar("Example")
Batch = TypeVar("Batch")


def make_loader(
    examples: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    collate: Callable[[Sequence[Example]], Batch],
    num_epochs: int | None = None,
    shuffle: bool = True,
) -> "grain.DatasetIterator[Batch]":
    """Iterates over batches of examples for training. No reference.

    Every epoch has its own order, which seed and epoch determine. The examples of an
    epoch that do not fill a last batch are left out of that epoch; which ones they are
    changes with the order.

    Args:
      examples: tokenized examples, or whatever ``collate`` takes.
      batch_size: examples a batch.
      seed: of the orders, 0 … 2³² − 1.
      collate: makes a batch of ``batch_size`` examples.
      num_epochs: passes over the examples; None goes on for ever.
      shuffle: False keeps the order of the examples.

    Returns:
      An iterator whose ``get_state()`` is a small dict that JSON can hold;
      ``set_state`` with it goes on exactly there, given the same arguments. It reads in
      the caller's thread: no workers.

    Raises:
      DataError: there are fewer examples than one batch.
      ValueError: batch_size or num_epochs is less than 1.

    >>> loader = make_loader(range(5), batch_size=2, seed=0, collate=list)
    >>> first, state, second = next(loader), loader.get_state(), next(loader)
    >>> loader.set_state(state)
    >>> next(loader) == second
    True
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"num_epochs is {num_epochs}; expected None or at least 1")
    if len(examples) < batch_size:
        raise DataError(
            f"{len(examples)} examples do not fill one batch of batch_size="
            f"{batch_size}; lower batch_size or give more data"
        )
    dataset = grain.MapDataset.source(examples)
    if shuffle:
        dataset = dataset.seed(seed).shuffle()
    # Batched before it is repeated: no batch goes over the end of an epoch.
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=collate)
    dataset = dataset.repeat(num_epochs)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def batches(
    examples: Sequence[Example],
    batch_size: int,
    collate: Callable[[Sequence[Example]], Batch],
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every example once and in order, for evaluation. No reference.

    The last batch is filled up with repetitions of its last example, so that all
    batches have one shape; ``valid`` tells them apart and must weigh what is computed.

    Args:
      examples: tokenized examples, or whatever ``collate`` takes.
      batch_size: examples a batch.
      collate: makes a batch of ``batch_size`` examples.

    Yields:
      (batch, valid): valid is [batch_size] bool, False for a repetition.

    Raises:
      ValueError: batch_size is less than 1.

    >>> for batch, valid in batches("abc", 2, "".join):
    ...     print(batch, valid)
    ab [ True  True]
    cc [ True False]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    for start in range(0, len(examples), batch_size):
        chunk = list(examples[start : start + batch_size])
        valid = np.arange(batch_size) < len(chunk)
        yield collate(chunk + chunk[-1:] * (batch_size - len(chunk))), valid
