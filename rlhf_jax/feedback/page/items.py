"""What is put before people: a prompt with completions, known by its content."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.data.columns import check_text, list_column, text_column
from rlhf_jax.data.row import Row

Mode = Literal["ranking", "yes_no", "scale"]


@dataclass(frozen=True)
class Item:
    """A prompt and its completions: several to rank, or one to rate."""

    prompt: str
    completions: tuple[str, ...]

    @property
    def id(self) -> str:
        """The same content is the same item, whenever it is added."""
        content = json.dumps([self.prompt, self.completions], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def make_items(
    prompt: str, completions: Iterable[str], mode: Mode
) -> tuple[list[Item], int]:
    """Items of a prompt's completions, and how many completions were left out.

    No reference. Empty ones say nothing, and of equal ones one is enough; fewer than
    two that differ are nothing to rank.

    >>> make_items("2 + 2 =", [" 4", " 5", " 4", ""], "ranking")
    ([Item(prompt='2 + 2 =', completions=(' 4', ' 5'))], 2)
    >>> items, left_out = make_items("2 + 2 =", [" 4", " 5"], "yes_no")
    >>> [item.completions for item in items]
    [(' 4',), (' 5',)]
    """
    given = list(completions)
    distinct = tuple(dict.fromkeys(text for text in given if text.strip()))
    left_out = len(given) - len(distinct)
    if mode != "ranking":
        return [Item(prompt, (text,)) for text in distinct], left_out
    if len(distinct) < 2:
        return [], len(given)
    return [Item(prompt, distinct)], left_out


def read_items(rows: Iterable[Row], mode: Mode) -> tuple[list[Item], int]:
    """Items of rows with ``prompt`` and ``completions``, or one ``completion`` to rate.

    No reference.

    Raises:
      DataError: a column is missing or of a wrong type; names file, line and column.

    >>> row = Row({"prompt": "2 + 2 =", "completion": " 4"}, "sums.jsonl", 1)
    >>> read_items([row], "yes_no")[0][0].completions
    (' 4',)
    """
    items, left_out = [], 0
    for row in rows:
        found, fewer = make_items(*_prompt_completions(row, mode), mode)
        items += found
        left_out += fewer
    return items, left_out


def _prompt_completions(row: Row, mode: Mode) -> tuple[str, list[str]]:
    """Texts may be empty here: which completions are left out is `make_items`'s say."""
    prompt = text_column(row, "prompt", empty=True)
    if mode != "ranking" and "completions" not in row.values:
        return prompt, [text_column(row, "completion", empty=True)]
    listed = list_column(row, "completions", "a list of texts", least=0)
    texts = [check_text(row, "completions", one, empty=True) for one in listed]
    return prompt, texts
