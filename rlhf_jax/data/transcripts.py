"""Transcripts of "Human:" and "Assistant:" turns as messages, for a chat template."""

import re
from collections.abc import Iterable
from dataclasses import replace

from rlhf_jax.data.columns import check_text, column_error, describe
from rlhf_jax.data.conversations import Message
from rlhf_jax.data.row import Row

ROLES = {"Human": "user", "Assistant": "assistant"}
WHOLE = ("prompt", "text", "chosen", "rejected")  # may hold a transcript


def read_transcripts(rows: Iterable[Row]) -> list[Row]:
    """Rows whose transcripts have become lists of messages.

    Bai et al. 2022, arXiv:2204.05862, for the form: "\\n\\nHuman: …" and
    "\\n\\nAssistant: …" in turn. White space around a turn is left out, and so is an
    "Assistant:" at the end of a ``prompt``, since the template writes the header. Turns
    of one speaker in a row are one message, with an empty line between.

    Args:
      rows: with transcripts in ``prompt``, ``text`` (which becomes ``messages``), or in
        ``chosen`` and ``rejected``; beside a ``prompt`` the columns ``completion``,
        ``chosen`` and ``rejected`` are answers to it.

    Returns:
      Rows for ``conversations``, ``conversation_prompts``, ``chat_preferences`` or
      ``chat_labels``, with all other columns.

    Raises:
      DataError: a column is not text, or no transcript.

    >>> dialogue = "\\n\\nHuman: 2 + 2?\\n\\nAssistant: "
    >>> row = Row({"chosen": dialogue + "4", "rejected": dialogue + "5"}, "hh.jsonl", 1)
    >>> read_transcripts([row])[0].values["rejected"][-1]
    {'role': 'assistant', 'content': '5'}
    """
    return [_read(row) for row in rows]


def _read(row: Row) -> Row:
    values, asked = dict(row.values), "prompt" in row.values
    for column in (*WHOLE, "completion"):
        if column not in values:
            continue
        text = check_text(row, column, values.pop(column))
        if column in (("prompt", "text") if asked else WHOLE):
            messages = _messages(row, column, text)
        else:
            messages = [{"role": "assistant", "content": text.strip()}]
        values["messages" if column == "text" else column] = messages
    return replace(row, values=values)


def _messages(row: Row, column: str, text: str) -> list[Message]:
    before, *turns = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not turns:
        wanted = "a transcript that begins with '\\n\\nHuman:'"
        raise column_error(row, column, wanted, describe(text))
    found: list[Message] = []
    for who, said in zip(turns[::2], turns[1::2], strict=True):
        turn = {"role": ROLES[who], "content": said.strip()}
        if found and found[-1]["role"] == turn["role"]:
            both = found.pop()["content"], turn["content"]
            turn["content"] = "\n\n".join(filter(None, both))
        found.append(turn)
    header = {"role": "assistant", "content": ""}
    return found[:-1] if column == "prompt" and found[-1] == header else found
