"""Answers to conversations, compared or labelled, as token ids of the chat template.

The prompt is what a sampler is given: the conversation with the header of its next
answer. The completion is that answer, with the token that ends it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.columns import column_names
from rlhf_jax.data.formats import FORMATS, detect_format
from rlhf_jax.data.records import Labeled, Messages, Preference, TokenIds
from rlhf_jax.data.row import DataError, Row
from rlhf_jax.data.templates import (
    ChatTemplate,
    check_control,
    owned_tokens,
    read_template,
    render_chat,
)
from rlhf_jax.data.tokenizing import check_different


def chat_preferences(rows: Iterable[Row]) -> list[Preference[Messages]]:
    """Rows whose ``chosen`` and ``rejected`` are messages, whole or after ``prompt``.

    No reference. Without a ``prompt`` of messages it is what both sides have in common,
    see ``split_messages``. What is compared is one answer: the sides differ in their
    last turn alone.

    Args:
      rows: rows as ``read_rows`` gives them; ``annotator``, ``margin`` and ``weight``
        are read where a row has them.

    Returns:
      One preference a row, in order; each side is one message of the assistant.

    Raises:
      DataError: the messages are none, nothing is in common, or the sides differ in
        more than their last answer.

    >>> ask, four, five = ({"role": role, "content": text} for role, text in
    ...     [("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5")])
    >>> row = Row({"chosen": [ask, four], "rejected": [ask, five]}, "sums.jsonl", 1)
    >>> [pair] = chat_preferences([row])
    >>> pair.prompt == (ask,), pair.chosen == (four,)
    (True, True)
    """
    found = []
    for row in rows:
        pair = _record(row, Preference)
        for column in ("chosen", "rejected"):
            _check_one(row, column, pair.prompt, getattr(pair, column))
        found.append(pair)
    return found


def chat_labels(rows: Iterable[Row]) -> list[Labeled[Messages]]:
    """Rows with ``label`` whose ``prompt`` and ``completion`` are messages.

    No reference.

    Args:
      rows: rows as ``read_rows`` gives them.

    Returns:
      One labelled answer a row, in order.

    Raises:
      DataError: the messages are none, the completion is not one answer, or the label
        is neither 0 nor 1.

    >>> ask, four = ({"role": role, "content": text} for role, text in
    ...     [("user", "2 + 2?"), ("assistant", "4")])
    >>> row = Row({"prompt": [ask], "completion": [four], "label": 1}, "sums.jsonl", 1)
    >>> chat_labels([row])[0].label
    1
    """
    found = []
    for row in rows:
        labelled = _record(row, Labeled)
        _check_one(row, "completion", labelled.prompt, labelled.completion)
        found.append(labelled)
    return found


def tokenize_chat_preferences(
    examples: Sequence[Preference[Messages]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
) -> list[Preference[TokenIds]]:
    """Preferences of messages as token ids, through the chat template; none is cut.

    No reference. A side is rendered and tokenized whole. Its completion begins where
    the prompt with the header of its answer ends, or where the template's own mark
    begins (``{% generation %}``), and ends with the token that ends the turn.

    Args:
      examples: preferences of messages, see ``chat_preferences``.
      tokenizer: any fast tokenizer of transformers that has a chat template.
      max_length: most tokens of prompt and longer side.

    Returns:
      Their tokens, in order.

    Raises:
      DataError: the tokenizer has no template, or it refuses or rewrites the row; a
        text spells a special token; or the row is too long.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    >>> ask, four, five = (({"role": role, "content": text},) for role, text in
    ...     [("user", "2+2="), ("assistant", "4"), ("assistant", "5")])
    >>> [pair] = tokenize_chat_preferences(
    ...     [Preference(ask, four, five)], tokenizer, max_length=5)
    >>> [tokenizer.decode(ids) for ids in (pair.prompt, pair.chosen, pair.rejected)]
    ['2+2=', '4', '5']
    """
    chat, found = read_template(tokenizer), []
    for index, example in enumerate(examples):
        name = example.origin or f"example {index}"
        sides = example.chosen, example.rejected
        prompt, ids = _answers(example.prompt, sides, chat, name, max_length)
        check_different(ids[0], ids[1], name)
        found.append(replace(example, prompt=prompt, chosen=ids[0], rejected=ids[1]))
    return found


def tokenize_chat_labels(
    examples: Sequence[Labeled[Messages]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
) -> list[Labeled[TokenIds]]:
    """Labelled answers of messages as ``tokenize_chat_preferences`` does it.

    No reference.

    Args:
      examples: labelled answers, see ``chat_labels``.
      tokenizer: any fast tokenizer of transformers that has a chat template.
      max_length: most tokens of prompt and completion.

    Returns:
      Their tokens, in order.

    Raises:
      DataError: as ``tokenize_chat_preferences``.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    >>> ask, four = (({"role": role, "content": text},) for role, text in
    ...     [("user", "2+2="), ("assistant", "4")])
    >>> [row] = tokenize_chat_labels([Labeled(ask, four, 1)], tokenizer, max_length=5)
    >>> tokenizer.decode(row.prompt), tokenizer.decode(row.completion), row.label
    ('2+2=', '4', 1)
    """
    chat, found = read_template(tokenizer), []
    for index, example in enumerate(examples):
        name, answer = example.origin or f"example {index}", (example.completion,)
        prompt, [ids] = _answers(example.prompt, answer, chat, name, max_length)
        found.append(replace(example, prompt=prompt, completion=ids))
    return found


def _record(row: Row, kind: type) -> Any:
    """The row's record, whatever its format, if it is of messages."""
    [record] = FORMATS[detect_format(row)](row)
    if not isinstance(record, kind) or isinstance(record.prompt, str):
        raise DataError(
            f"{row.origin}: expected lists of messages, as the others have them; the "
            f"columns are {column_names(row)}; correct or remove the row"
        )
    return record


def _check_one(row: Row, column: str, prompt: Messages, answer: Messages) -> None:
    if len(answer) > 1:
        roles = ", ".join(message["role"] for message in answer)
        raise DataError(
            f"{row.origin}: column {column!r}: expected one answer after the prompt of "
            f"{len(prompt)} messages, found {len(answer)} messages ({roles}); what is "
            "compared is the last turn: end each side after the first answer that "
            "differs, or remove the row"
        )


def _answers(
    prompt: Messages,
    answers: Sequence[Messages],
    chat: ChatTemplate,
    name: str,
    max_length: int,
) -> tuple[TokenIds, list[TokenIds]]:
    """A prompt's tokens, and those of each of its answers."""
    check_control([*prompt, *(m for answer in answers for m in answer)], chat, name)
    before, _ = render_chat(prompt, chat, name, prompt=True)
    prompts, found = set(), []
    for answer in answers:
        text, spans = render_chat([*prompt, *answer], chat, name, prompt=False)
        if not text.startswith(before):
            raise DataError(
                f"{name}: the chat template rewrites the prompt once it is answered, "
                "so that the answer's tokens cannot be told apart; correct the template"
            )
        if spans is None:
            spans = [(len(before), len(text))]
        spans = [span for span in spans if span[1] > len(before)]
        ids, mask = owned_tokens(text, spans, chat, name)
        end = len(mask) - mask[::-1].index(True)
        first = mask.index(True)
        prompts.add(ids[:first])
        found.append(ids[first:end])
    if len(prompts) > 1:
        raise DataError(
            f"{name}: the last token of the prompt is not the same before each answer, "
            "since it holds text of both; remove the row"
        )
    [ids] = prompts
    longest = len(ids) + max(map(len, found))
    if longest > max_length:
        raise DataError(
            f"{name}: {longest} tokens are more than max_length={max_length}; raise "
            "it, or shorten or remove the row"
        )
    return ids, found
