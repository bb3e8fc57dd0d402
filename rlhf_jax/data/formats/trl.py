"""TRL's dataset types, plain and conversational, to records.

Hugging Face, "TRL: Dataset formats and types" (no arXiv number). A column is
conversational where it holds a list of messages; every row decides for itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_jax.data.columns import (
    check_label,
    check_text,
    column_error,
    column_value,
    describe,
    list_column,
    text_column,
)
from rlhf_jax.data.conversations import (
    Conversation,
    Message,
    check_messages,
    conversation_prompts,
    conversations,
)
from rlhf_jax.data.records import (
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    demonstrations,
    labels,
    make_preference,
    preferences,
    prompts,
)
from rlhf_jax.data.row import Row
from rlhf_jax.data.splitting import split_messages, split_texts

STEP_SEPARATOR = "\n"  # between the steps of a solution, as TRL puts it
LIST = "a list of messages"


def prompt_only(row: Row) -> list[Prompt[str] | Conversation]:
    """``prompt``: something to answer. No reference."""
    if is_chat(row, "prompt"):
        return [*conversation_prompts([row])]
    return [*prompts([row])]


def language_modeling(row: Row) -> list[Demonstration[str] | Conversation]:
    """``text``, or ``messages`` that end with an answer. No reference."""
    if "messages" not in row.values:
        return [*demonstrations([_only(row, "text")])]
    return _answered(_only(row, "messages"))


def prompt_completion(row: Row) -> list[Demonstration[str] | Conversation]:
    """``prompt`` and ``completion``, both text or both messages. No reference."""
    row = _only(row, "prompt", "completion")
    if is_chat(row, "prompt", "completion"):
        return _answered(row)
    return [*demonstrations([row])]


def preference(row: Row) -> list[Preference[Any]]:
    """``prompt``, ``chosen`` and ``rejected``, all text or all messages.

    No reference.
    """
    if not is_chat(row, "prompt", "chosen", "rejected"):
        text_column(row, "prompt", empty=True)
        return [*preferences([row])]
    prompt = _asked(row)
    chosen, rejected = (_answer(row, c, prompt) for c in ("chosen", "rejected"))
    return [make_preference(row, prompt, chosen, rejected)]


def implicit_preference(row: Row) -> list[Preference[Any]]:
    """``chosen`` and ``rejected``, each with the prompt in it. No reference."""
    if is_chat(row, "chosen", "rejected"):
        return [_common_messages(row)]
    whole = text_column(row, "chosen"), text_column(row, "rejected")
    end = split_texts(*whole)
    return [make_preference(row, whole[0][:end], *(side[end:] for side in whole))]


def unpaired(row: Row) -> list[Labeled[Any]]:
    """``label`` with ``prompt`` and ``completion``, or with ``text``. No reference."""
    if not is_chat(row, "prompt", "completion"):
        return [*labels([_only(row, "prompt", "completion", "text", "label")])]
    prompt = _asked(row)
    completion = _answer(row, "completion", prompt)
    label = check_label(row, "label", column_value(row, "label"))
    return [Labeled(prompt, completion, label, row.origin)]


def stepwise(row: Row) -> list[Labeled[str]]:
    """``prompt``, ``completions``, ``labels``: each step after those before it.

    No reference.
    """
    before = text_column(row, "prompt", empty=True)
    steps = list_column(row, "completions", "a list of steps")
    wanted = f"{len(steps)} labels, one a step"
    rights = list_column(row, "labels", wanted)
    if len(rights) != len(steps):
        raise column_error(row, "labels", wanted, describe(rights))
    found = []
    for step, right in zip(steps, rights, strict=True):
        check_text(row, "completions", step)
        label = check_label(row, "labels", right)
        found.append(Labeled(before, step, label, row.origin))
        before += step + STEP_SEPARATOR
    return found


def is_chat(row: Row, *columns: str) -> bool:
    """Whether one of the columns holds a list, as that of messages is. No reference."""
    return any(isinstance(row.values.get(column), list | tuple) for column in columns)


def _only(row: Row, *columns: str) -> Row:
    """The row without columns that another type would read."""
    values = {column: row.values[column] for column in columns if column in row.values}
    return replace(row, values=values)


def _answered(row: Row) -> list[Demonstration[str] | Conversation]:
    [conversation] = conversations([row])
    check_messages(conversation.messages, row.origin, last=("assistant",))
    return [conversation]


def _asked(row: Row) -> tuple[Message, ...]:
    prompt = list_column(row, "prompt", f"{LIST}, as the answers are")
    check_messages(prompt, f"{row.origin}: column 'prompt'", last=("user", "tool"))
    return tuple(prompt)


def _answer(row: Row, column: str, prompt: Sequence[Message]) -> tuple[Message, ...]:
    """Messages from one of the assistant to the last, which is one, too."""
    answer = list_column(row, column, f"{LIST}, as the prompt is")
    name = f"{row.origin}: columns 'prompt' and {column!r}"
    check_messages([*prompt, *answer], name, last=("assistant",))
    if answer[0]["role"] != "assistant":
        wanted = "a first message of assistant"
        raise column_error(row, column, wanted, answer[0]["role"])
    return tuple(answer)


def _common_messages(row: Row) -> Preference[Any]:
    sides = []
    for column in ("chosen", "rejected"):
        side = list_column(row, column, f"{LIST}, as the other side is")
        check_messages(side, f"{row.origin}: column {column!r}", last=("assistant",))
        sides.append(tuple(side))
    chosen, rejected = sides
    end = split_messages(chosen, rejected)
    if not end:
        first = "the first messages of chosen, for a prompt to be in common"
        raise column_error(
            row, "rejected", first, describe(column_value(row, "rejected"))
        )
    prompt = chosen[:end]
    return make_preference(row, prompt, chosen[end:], rejected[end:])
