"""Rows of conversations: turns with a role and a text, in chat models' usual form."""

import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.data.columns import column_names
from rlhf_jax.data.row import DataError, Row

Message = dict[str, str]
"""One turn: ``role``, ``content``, and what else of text a template reads."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Turns of a dialogue, in order."""

    messages: tuple[Message, ...]
    origin: str = field(default="", compare=False)  # source:line, for messages
    columns: dict[str, Any] = field(default_factory=dict, compare=False)  # the others


def conversations(rows: Iterable[Row]) -> list[Conversation]:
    """Rows with ``messages``, or with lists of messages in ``prompt``, ``completion``.

    No reference. Prompt and completion are put together to one conversation, whose
    earlier answers are learnt as well.

    Args:
      rows: rows as ``read_rows`` gives them; other columns are left alone.

    Returns:
      One conversation a row, in order.

    Raises:
      DataError: a column is missing, or ``check_messages`` finds fault with it.

    >>> turns = [{"role": "user", "content": "2 + 2?"},
    ...          {"role": "assistant", "content": "4"}]
    >>> [chat] = conversations([Row({"messages": turns}, "sums.jsonl", 1)])
    >>> len(chat.messages), chat.origin
    (2, 'sums.jsonl:1')
    """
    return [Conversation(_messages(row), row.origin) for row in rows]


def check_messages(messages: Any, name: str, *, last: Sequence[str] = ROLES) -> None:
    """Raises unless messages are a conversation: roles and texts. No reference.

    Args:
      messages: anything; of values beside role and content None counts as absent.
      name: what the error calls the conversation, such as ``file:line``.
      last: roles that the last message may have.

    Raises:
      DataError: there is no message, the assistant speaks first or with an empty text,
        or a role or a text is not one. The message names row and message.

    >>> check_messages([{"role": "bot", "content": "4"}], "sums.jsonl:1")
    Traceback (most recent call last):
    rlhf_jax.data.row.DataError: sums.jsonl:1: message 1: expected a role of \
system, user, assistant, tool, found 'bot'; correct or remove the row
    """
    _check_list(messages, name)
    for number, message in enumerate(messages, 1):
        _check_message(message, f"{name}: message {number}")
    if messages[0]["role"] == "assistant":
        raise _error(name, "a first message of system or user", "assistant")
    if messages[-1]["role"] not in last:
        wanted = f"a last message of {' or '.join(last)}"
        raise _error(name, wanted, messages[-1]["role"])


def conversation_prompts(rows: Iterable[Row]) -> list[Conversation]:
    """Rows whose ``prompt`` is a list of messages, to be answered. No reference.

    Args:
      rows: rows as ``read_rows`` gives them.

    Returns:
      One conversation a row, in order, with the row's other columns.

    Raises:
      DataError: the column is missing, or ``check_messages`` finds fault with it.

    >>> row = Row({"prompt": [{"role": "user", "content": "2 + 2?"}]}, "sums.jsonl", 1)
    >>> conversation_prompts([row])[0].messages[0]["content"]
    '2 + 2?'
    """
    found = []
    for row in rows:
        messages: Any = row.values.get("prompt")
        check_messages(messages, f"{row.origin}: prompt", last=("user", "tool"))
        columns = {k: v for k, v in row.values.items() if k != "prompt"}
        found.append(Conversation(tuple(messages), row.origin, columns))
    return found


def _messages(row: Row) -> tuple[Message, ...]:
    columns = {"messages", "prompt", "completion"} & row.values.keys()
    if columns not in ({"messages"}, {"prompt", "completion"}):
        raise DataError(
            f"{row.origin}: expected 'messages', or 'prompt' and 'completion'; the "
            f"columns are {column_names(row)}; rename or remove some"
        )
    messages: list[Message] = []
    for column in sorted(columns, reverse=True):  # the prompt first
        _check_list(row.values[column], f"{row.origin}: column {column!r}")
        messages += row.values[column]
    check_messages(messages, row.origin)
    return tuple(messages)


def _check_list(messages: Any, name: str) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise _error(name, "a list of messages", messages)


def _check_message(message: Any, name: str) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise _error(name, "a mapping with role and content", message)
    for key, value in message.items():
        if value is None and key not in ("role", "content"):
            continue
        if not isinstance(value, str):
            raise _error(f"{name}: {key!r}", "text", value)
        lone = re.search("[\ud800-\udfff]", value)  # JSON can spell what UTF-8 cannot
        if lone:
            raise _error(f"{name}: {key!r}", "no lone surrogate", lone.group())
    role = message["role"]
    if role not in ROLES:
        raise _error(name, f"a role of {', '.join(ROLES)}", role)
    if role == "assistant" and not message["content"]:
        raise _error(name, "an answer that is not empty", "")


def _error(name: str, wanted: str, found: Any) -> DataError:
    shown = "null" if found is None else reprlib.repr(found)
    return DataError(
        f"{name}: expected {wanted}, found {shown}; correct or remove the row"
    )
