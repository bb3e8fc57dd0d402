"""A row of data as its source holds it, and what stands where none can be read."""

from dataclasses import dataclass
from typing import Any

from rlhf_jax.errors import UserError


class DataError(UserError):
    """Something is wrong with the data; the message is one line that says where."""


def origin(source: str, line: int, place: int = 1) -> str:
    """Where something stands; no two rows of a source have the same."""
    return f"{source}:{line}" + (f", object {place}" if place > 1 else "")


@dataclass(frozen=True)
class Row:
    """One row as its source holds it."""

    values: dict[str, Any]  # column name -> value
    source: str  # path of the file, or "tfds:NAME/CONFIG[SPLIT]"
    line: int  # counted from 1: the line of a text file, the row of anything else
    place: int = 1  # on its line: a list of JSON may have several there

    @property
    def origin(self) -> str:
        """Where the row stands, as error messages name it: ``source:line``.

        >>> Row({}, "sums.json", 1, place=3).origin
        'sums.json:1, object 3'
        """
        return origin(self.source, self.line, self.place)


@dataclass(frozen=True)
class Fault:
    """What cannot be read, with the reason."""

    origin: str  # source:line
    reason: str  # what was found, what was expected, what to do
    raw: str  # the text as it stands, bytes that are no UTF-8 written as \\xNN
