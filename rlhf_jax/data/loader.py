"""Batches of examples: endless and resumable for training, complete for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from rlhf_jax.data.row import DataError

Example = TypeVar("Example")
Batch = TypeVar("Batch")


class Loader(Generic[Batch]):
    """Batches without end or for some epochs, and which examples they are of.

    What ``make_loader`` returns. ``get_state()`` is a small dict that JSON can hold;
    ``set_state`` with it goes on exactly there, given the same arguments of
    ``make_loader``.
    """

    def __init__(
        self,
        numbered: "grain.DatasetIterator[tuple[np.ndarray, Batch]]",
        examples: Sequence[Any],
    ):
        self.examples = examples
        self._numbered, self._rows = numbered, np.zeros(0, np.int64)

    @property
    def rows(self) -> np.ndarray:
        """[B] int64: where in ``examples`` the rows of the last batch are.

        Empty before the first batch, and after ``set_state`` before the next one.
        """
        return self._rows

    def __iter__(self) -> "Loader[Batch]":
        return self

    def __next__(self) -> Batch:
        self._rows, batch = next(self._numbered)
        return batch

    def get_state(self) -> dict[str, Any]:
        """The place between two batches."""
        return self._numbered.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place that ``get_state`` told."""
        self._numbered.set_state(state)
        self._rows = np.zeros(0, np.int64)


def make_loader(
    examples: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    collate: Callable[[Sequence[Example]], Batch],
    num_epochs: int | None = None,
    shuffle: bool = True,
) -> Loader[Batch]:
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
      A `Loader`, an iterator that can be moved and tells which examples the last batch
      is of. It reads in the caller's thread: no workers.

    Raises:
      DataError: there are fewer examples than one batch.
      ValueError: batch_size or num_epochs is less than 1.

    >>> loader = make_loader(range(5), batch_size=2, seed=0, collate=list)
    >>> first, state, second = next(loader), loader.get_state(), next(loader)
    >>> loader.set_state(state)
    >>> next(loader) == second == loader.rows.tolist()
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

    def numbered(rows: Sequence[int]) -> tuple[np.ndarray, Batch]:
        return np.asarray(rows, np.int64), collate([examples[row] for row in rows])

    dataset = grain.MapDataset.source(range(len(examples)))
    if shuffle:
        dataset = dataset.seed(seed).shuffle()
    # Batched before it is repeated: no batch goes over the end of an epoch.
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=numbered)
    dataset = dataset.repeat(num_epochs)
    read = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)))
    return Loader(read, examples)


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
