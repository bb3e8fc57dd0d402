"""Runs that end before they are done."""

import contextlib
from collections.abc import Iterator

import pytest

from experiments.resuming import Saves


@contextlib.contextmanager
def killed_at_its_second_save() -> Iterator[None]:
    """What runs within it dies where it would begin its second checkpoint."""
    save, count = Saves.save, []

    def save_once(self, step, state):
        if count:
            raise KeyboardInterrupt
        count.append(1)
        save(self, step, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saves, "save", save_once)
        with pytest.raises(KeyboardInterrupt):
            yield
