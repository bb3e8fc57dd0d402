"""What can be used and what cannot, one by one where not all of it can."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rlhf_jax.data.row import DataError


class Placed(Protocol):
    """A row or a record, which knows where it stands."""

    @property
    def origin(self) -> str: ...


Item = TypeVar("Item", bound=Placed)


def sort_out(
    items: Sequence[Item], use: Callable[[list[Item]], Any]
) -> tuple[Any, list[tuple[Item, DataError]]]:
    """What is made of the items that can be used, and the others with their errors.

    No reference. As long as nothing is wrong ``use`` is called once, with all of them:
    then the result is what it would be without this function.

    Args:
      items: rows or records in order.
      use: a strict function of such items, which raises a DataError that begins with
        the origin of the faulty one; an error of another text is one of all of them.

    Returns:
      (what ``use`` makes of all the usable items together, [(item, its error)]).

    Raises:
      DataError: one that names no item, such as that of a tokenizer without template.

    >>> from rlhf_jax.data.records import prompts
    >>> from rlhf_jax.data.row import Row
    >>> rows = [Row({"prompt": x}, "sums.jsonl", n) for n, x in enumerate(["2", ""], 1)]
    >>> used, [(row, error)] = sort_out(rows, prompts)
    >>> len(used), row.origin, str(error)[:31]
    (1, 'sums.jsonl:2', "sums.jsonl:2: column 'prompt': ")
    """
    try:
        return use(list(items)), []
    except DataError:
        pass  # of which item, is found out by asking for each alone
    good, faulty = [], []
    for item in items:
        try:
            use([item])
        except DataError as error:
            if not str(error).startswith(f"{item.origin}: "):
                raise
            faulty.append((item, error))
        else:
            good.append(item)
    return use(good), faulty


def reason_kind(reason: str) -> str:
    """What the reasons of many rows have in common: no value, place or number.

    >>> reason_kind("column 'chosen': expected text, found null; the columns are …")
    "column 'chosen': expected text"
    >>> reason_kind("1,340 tokens are more than max_length=128; raise it")
    '… tokens are more than max_length=128'
    """
    kind = re.split(r", (?:found|end token)|; |, at character| \(byte", reason)[0]
    kind += ")" * (kind.count("(") - kind.count(")"))
    return re.sub(r"[\d,]+(?= (tokens|fields|characters))|(?<=message )\d+", "…", kind)
