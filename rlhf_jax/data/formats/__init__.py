"""Known formats of rows to records, each by one function from a row."""

from collections.abc import Callable
from typing import Any

from rlhf_jax.data.columns import describe
from rlhf_jax.data.conversations import Conversation
from rlhf_jax.data.formats.exports import argilla, label_studio
from rlhf_jax.data.formats.published import (
    hh,
    ranking,
    summarize_from_feedback,
    ultrafeedback,
    ultrafeedback_binarized,
)
from rlhf_jax.data.formats.trl import (
    implicit_preference,
    language_modeling,
    preference,
    prompt_completion,
    prompt_only,
    stepwise,
    unpaired,
)
from rlhf_jax.data.records import Demonstration, Labeled, Preference, Prompt, Ranking
from rlhf_jax.data.row import DataError, Row
from rlhf_jax.data.splitting import ASSISTANT, HUMAN

Record = (
    Prompt[Any]
    | Demonstration[Any]
    | Labeled[Any]
    | Preference[Any]
    | Ranking[Any]
    | Conversation
)

FORMATS: dict[str, Callable[[Row], list[Any]]] = {
    "prompt": prompt_only,
    "language_modeling": language_modeling,
    "prompt_completion": prompt_completion,
    "preference": preference,
    "implicit_preference": implicit_preference,
    "unpaired": unpaired,
    "stepwise": stepwise,
    "ranking": ranking,
    "hh": hh,
    "summarize_from_feedback": summarize_from_feedback,
    "ultrafeedback": ultrafeedback,
    "ultrafeedback_binarized": ultrafeedback_binarized,
    "label_studio": label_studio,
    "argilla": argilla,
}
"""Name of a format → function from a row to its records.

:meta hide-value:
"""

# The columns that tell a format, the most telling first.
_COLUMNS = (
    ("summarize_from_feedback", {"info", "summaries"}),
    ("ultrafeedback", {"instruction", "completions"}),
    ("argilla", {"fields", "responses"}),
    ("label_studio", {"data", "annotations"}),
    ("label_studio", {"annotation_id"}),
    ("preference", {"chosen", "rejected"}),
    ("stepwise", {"completions", "labels"}),
    ("ranking", {"completions", "ranks"}),
    ("unpaired", {"completion", "label"}),
    ("unpaired", {"text", "label"}),
    ("prompt_completion", {"prompt", "completion"}),
    ("language_modeling", {"messages"}),
    ("language_modeling", {"text"}),
    ("prompt", {"prompt"}),
)


def detect_format(row: Row) -> str:
    """The format of a row, by its columns. No reference.

    Args:
      row: as ``read_rows`` gives it.

    Returns:
      A name in ``FORMATS``.

    Raises:
      DataError: no format has such columns.

    >>> detect_format(Row({"prompt": "2 =", "chosen": " 2", "rejected": " 3"}, "a", 1))
    'preference'
    """
    columns = row.values.keys()
    for name, telling in _COLUMNS:
        if telling <= columns:
            return _kind_of_pair(row) if name == "preference" else name
    raise DataError(
        f"{row.origin}: columns {describe(', '.join(map(str, columns)))} are of no "
        f"known format; expected one of {', '.join(FORMATS)}; rename columns, or name "
        f"the format"
    )


def _kind_of_pair(row: Row) -> str:
    chosen, rejected = row.values["chosen"], row.values["rejected"]
    messages = isinstance(chosen, list) and isinstance(rejected, list)
    if "prompt" in row.values:
        redundant = messages and isinstance(row.values["prompt"], str)
        return "ultrafeedback_binarized" if redundant else "preference"
    if isinstance(chosen, str) and (HUMAN in chosen or ASSISTANT in chosen):
        return "hh"
    return "implicit_preference"


def record_values(record: Record) -> dict[str, Any]:
    """A record as the columns that its own reader reads again. No reference.

    Args:
      record: of text or of messages.

    Returns:
      Columns ready for JSON, with ``origin``; what says nothing is left out.

    >>> record_values(Preference("2 =", " 2", " 3", origin="sums.jsonl:1"))
    {'prompt': '2 =', 'chosen': ' 2', 'rejected': ' 3', 'origin': 'sums.jsonl:1'}
    """
    if isinstance(record, Conversation):
        asks = record.messages[-1]["role"] != "assistant"
        column = "prompt" if asks else "messages"
        said = {column: list(record.messages), "origin": record.origin}
        return record.columns | said
    unsaid = {"annotator": -1, "margin": 0.0, "weight": 1.0}
    others = record.columns if isinstance(record, Prompt) else {}
    return others | {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(record).items()
        if name != "columns" and (name not in unsaid or value != unsaid[name])
    }
