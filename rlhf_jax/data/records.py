"""What the rows of a data set mean: demonstrations, prompts, preferences and so on.

A record's texts are str, or the messages of a dialogue, when read and tuples of token
ids once tokenized; prompt and completion put together are the exact text, so a
completion that follows a word begins with its own space.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from rlhf_jax.data.columns import (
    annotator_column,
    check_label,
    check_text,
    column_error,
    column_names,
    column_value,
    describe,
    list_column,
    number_column,
    text_column,
)
from rlhf_jax.data.conversations import Message
from rlhf_jax.data.row import DataError, Row
from rlhf_jax.data.splitting import ASSISTANT, split_transcripts

TokenIds = tuple[int, ...]
Messages = tuple[Message, ...]
Text = TypeVar("Text", str, TokenIds, Messages)


@dataclass(frozen=True)
class Prompt(Generic[Text]):
    """Something to answer."""

    prompt: Text
    origin: str = field(default="", compare=False)  # source:line, for messages
    columns: dict[str, Any] = field(default_factory=dict, compare=False)  # the others


@dataclass(frozen=True)
class Demonstration(Generic[Text]):
    """A prompt with an answer to imitate; plain text is an answer to an empty one."""

    prompt: Text
    completion: Text
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Labeled(Generic[Text]):
    """An answer judged by itself: 1 good, 0 bad."""

    prompt: Text
    completion: Text
    label: int
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Preference(Generic[Text]):
    """Two answers to one prompt, and which of them is better."""

    prompt: Text
    chosen: Text
    rejected: Text
    annotator: int = -1  # who judged, -1 = unknown
    margin: float = 0.0  # how much better chosen is, in score units
    weight: float = 1.0  # of the pair in the loss
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Ranking(Generic[Text]):
    """K answers to one prompt in order of preference."""

    prompt: Text
    completions: tuple[Text, ...]
    ranks: tuple[int, ...]  # of each completion: 0 is best, equal ranks are ties
    annotator: int = -1
    origin: str = field(default="", compare=False)


def demonstrations(rows: Iterable[Row]) -> list[Demonstration[str]]:
    """Rows with ``prompt`` and ``completion``, or with a single ``text``.

    No reference.

    Args:
      rows: rows as ``read_rows`` gives them; other columns are left alone.

    Returns:
      One demonstration a row, in order; the prompt of a ``text`` is empty.

    Raises:
      DataError: a column is missing, not text, or a completion is empty. The message
        names file, line and column.

    >>> demonstrations([Row({"text": "A warm film."}, "films.jsonl", 1)])
    [Demonstration(prompt='', completion='A warm film.', origin='films.jsonl:1')]
    """
    return [Demonstration(*_prompt_completion(row), row.origin) for row in rows]


def prompts(
    rows: Iterable[Row], *, prompt_words: int | None = None
) -> list[Prompt[str]]:
    """Rows with ``prompt``, or the first words of rows with ``text``.

    No reference; the first words of a review as a prompt are Ziegler et al. 2019,
    arXiv:1909.08593.

    Args:
      rows: rows as ``read_rows`` gives them.
      prompt_words: None reads ``prompt``; a number takes that many words from the
        beginning of ``text``, or all of a text that has fewer.

    Returns:
      One prompt a row, in order, with the row's other columns.

    Raises:
      DataError: the column is missing, not text or empty.

    >>> row = Row({"text": "A warm, funny film."}, "films.jsonl", 1)
    >>> prompts([row], prompt_words=2)[0].prompt
    'A warm,'
    """
    if prompt_words is None:
        return [
            Prompt(text_column(row, "prompt"), *_rest(row, "prompt")) for row in rows
        ]
    if prompt_words < 1:
        raise ValueError(f"prompt_words is {prompt_words}; expected None or at least 1")
    words = re.compile(rf"(?:\s*\S+){{1,{prompt_words}}}")
    found = []
    for row in rows:
        first = words.match(text_column(row, "text"))
        if first is None:
            raise column_error(row, "text", "at least one word", "white space")
        found.append(Prompt(first.group(), *_rest(row, "text")))
    return found


def content(record: Any) -> dict[str, Any]:
    """What a record says: its fields but for where it stands and other columns.

    No reference.

    >>> content(Prompt("2 + 2 =", "sums.jsonl:1"))
    {'prompt': '2 + 2 ='}
    """
    return {f.name: getattr(record, f.name) for f in fields(record) if f.compare}


def _rest(row: Row, column: str) -> tuple[str, dict[str, Any]]:
    """Where a row stands, and its other columns."""
    return row.origin, {k: v for k, v in row.values.items() if k != column}


def preferences(rows: Iterable[Row]) -> list[Preference[str]]:
    """Rows with ``prompt``, ``chosen`` and ``rejected``, or with two HH transcripts.

    Bai et al. 2022, arXiv:2204.05862, for the transcripts: ``chosen`` and ``rejected``
    without ``prompt`` are whole dialogues of "\\n\\nHuman: …" and "\\n\\nAssistant: …"
    turns. They are split after the last "\\n\\nAssistant:" of what both have in
    common, so that prompt + completion is each transcript, to the character.

    Args:
      rows: rows as ``read_rows`` gives them; ``annotator`` (int), ``margin`` and
        ``weight`` (numbers) are read where a row has them.

    Returns:
      One preference a row, in order.

    Raises:
      DataError: a column is missing or of a wrong type, a completion is empty, both
        are equal, or the transcripts have no turn in common.

    >>> dialogue = "\\n\\nHuman: 2 + 2?\\n\\nAssistant: "
    >>> row = Row({"chosen": dialogue + "4", "rejected": dialogue + "5"}, "hh.jsonl", 1)
    >>> pair = preferences([row])[0]
    >>> pair.prompt, pair.chosen, pair.rejected
    ('\\n\\nHuman: 2 + 2?\\n\\nAssistant:', ' 4', ' 5')
    """
    return [_preference(row) for row in rows]


def rankings(rows: Iterable[Row]) -> list[Ranking[str]]:
    """Rows with ``prompt``, ``completions`` and ``ranks``. No reference.

    Args:
      rows: rows as ``read_rows`` gives them; ``completions`` is a list of at least
        two texts and ``ranks`` a list of as many integers, 0 the best, equal for ties;
        ``annotator`` (int) is read where a row has it.

    Returns:
      One ranking a row, in order.

    Raises:
      DataError: a column is missing or of a wrong type, a completion is empty, or the
        ranks are not one a completion, counted from 0.

    >>> row = Row({"prompt": "2 + 2 =", "completions": ["5", "4"], "ranks": [1, 0]},
    ...           "sums.jsonl", 1)
    >>> rankings([row])[0].ranks
    (1, 0)
    """
    return [_ranking(row) for row in rows]


def labels(rows: Iterable[Row]) -> list[Labeled[str]]:
    """Rows with ``label`` and ``text``, or with ``label``, ``prompt``, ``completion``.

    No reference.

    Args:
      rows: rows as ``read_rows`` gives them; ``label`` is 1 for good, 0 for bad.

    Returns:
      One labelled completion a row, in order; the prompt of a ``text`` is empty.

    Raises:
      DataError: a column is missing or of a wrong type, a completion is empty, or a
        label is neither 0 nor 1.

    >>> labels([Row({"text": "A warm film.", "label": 1}, "films.jsonl", 1)])[0].label
    1
    """
    return [
        Labeled(
            *_prompt_completion(row),
            check_label(row, "label", column_value(row, "label")),
            row.origin,
        )
        for row in rows
    ]


def _prompt_completion(row: Row) -> tuple[str, str]:
    if "text" in row.values and not {"prompt", "completion"} & row.values.keys():
        return "", text_column(row, "text")
    if "text" in row.values:
        both = "either text, or prompt and completion"
        raise column_error(row, "text", both, "text beside them")
    if not {"prompt", "completion"} & row.values.keys():
        column_value(row, "text", "prompt and completion")
    return text_column(row, "prompt", empty=True), text_column(row, "completion")


def _preference(row: Row) -> Preference[str]:
    chosen, rejected = text_column(row, "chosen"), text_column(row, "rejected")
    if "prompt" in row.values:
        prompt = text_column(row, "prompt", empty=True)
    else:
        prompt = _common_prompt(row, chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for column, completion in (("chosen", chosen), ("rejected", rejected)):
        if not completion:
            answer = f"an answer after the last {ASSISTANT!r}"
            raise column_error(row, column, answer, "none")
    return make_preference(row, prompt, chosen, rejected)


def make_preference(
    row: Row, prompt: Text, chosen: Text, rejected: Text
) -> Preference[Text]:
    """A row's preference, with its annotator, margin and weight where it has them.

    No reference.

    Args:
      row: where these columns are read.
      prompt: what both sides answer.
      chosen: the better one.
      rejected: the other one.

    Returns:
      The record.

    Raises:
      DataError: both sides are equal, or one of the columns is of a wrong type.

    >>> make_preference(Row({"weight": 0.5}, "sums.jsonl", 1), "2 =", " 2", " 3").weight
    0.5
    """
    if chosen == rejected:
        same = "the same text" if isinstance(chosen, str) else "the same messages"
        raise column_error(row, "rejected", "another answer than chosen", same)
    margin, weight = "margin" in row.values, "weight" in row.values
    return Preference(
        prompt,
        chosen,
        rejected,
        annotator=annotator_column(row),
        margin=number_column(row, "margin", -math.inf) if margin else 0.0,
        weight=number_column(row, "weight", 0.0) if weight else 1.0,
        origin=row.origin,
    )


def _common_prompt(row: Row, chosen: str, rejected: str) -> str:
    end = split_transcripts(chosen, rejected)
    if not end:
        raise DataError(
            f"{row.origin}: no column 'prompt', and chosen and rejected have no "
            f"{ASSISTANT!r} in common to end one; the columns are "
            f"{column_names(row)}; add a column prompt"
        )
    return chosen[:end]


def _ranking(row: Row) -> Ranking[str]:
    wanted = "a list of at least two texts"
    completions = list_column(row, "completions", wanted, least=2)
    for completion in completions:
        check_text(row, "completions", completion)
    ranks = column_value(row, "ranks")
    whole = isinstance(ranks, list) and all(type(rank) is int for rank in ranks)
    if not whole or len(ranks) != len(completions) or min(ranks) != 0:
        wanted = f"{len(completions)} integers, one a completion, the best 0"
        raise column_error(row, "ranks", wanted, describe(ranks))
    if len(set(zip(completions, ranks, strict=True))) > len(set(completions)):
        raise column_error(
            row, "ranks", "equal ranks for equal completions", f"{ranks}"
        )
    prompt = text_column(row, "prompt", empty=True)
    return Ranking(
        prompt, tuple(completions), tuple(ranks), annotator_column(row), row.origin
    )
