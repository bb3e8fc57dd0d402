"""Conversations to token ids through the tokenizer's chat template, each in one call.

One call, because text tokenized in pieces has other tokens than the whole has. A row
begins with at most one <bos>: the template's, else the one that the tokenizer would add
by itself. The mask owns what the policy must emit, on the turns of the assistant only:
all that follows the header which begins an answer, with the token that ends the turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.batching import right_padded
from rlhf_jax.data.conversations import Conversation, Message, check_messages
from rlhf_jax.data.records import Prompt, TokenIds
from rlhf_jax.data.row import DataError
from rlhf_jax.data.templates import (
    ChatTemplate,
    Span,
    check_control,
    encode_chat,
    owned_tokens,
    read_template,
    render_chat,
)
from rlhf_jax.types import TokenBatch


@dataclass(frozen=True)
class ChatTokens:
    """A tokenized conversation, and which of its tokens the assistant's turns own."""

    ids: TokenIds
    mask: tuple[bool, ...]  # of each id


def tokenize_chat(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, *, name: str = ""
) -> ChatTokens:
    """A conversation as token ids, with a mask that owns the assistant's turns.

    No reference. A turn is what the template marks (``{% generation %}``), or without
    marks what follows the header that prompts for it. White space after the special
    token that ends a turn is left out: a sampler stops before it. A turn that no
    special token ends keeps it. A token that holds text of a turn and of what is before
    or after it is owned if it begins in the turn.

    Args:
      messages: a conversation that ends with the assistant's answer.
      tokenizer: any fast tokenizer of transformers that has a chat template.
      name: what errors call the conversation, such as ``file:line``.

    Returns:
      The tokens, and whether the assistant owns each of them.

    Raises:
      DataError: ``check_messages`` finds fault, a text spells a special token, or the
        template is missing, raises, begins with two <bos> or rewrites earlier turns.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    >>> turns = [{"role": "user", "content": "2+2="},
    ...          {"role": "assistant", "content": "4"}]
    >>> chat = tokenize_chat(turns, tokenizer)
    >>> tokenizer.decode(chat.ids), [int(owned) for owned in chat.mask]
    ('2+2=4', [0, 0, 0, 0, 1])
    """
    return _tokenize(messages, read_template(tokenizer), name or "the conversation")


def tokenize_chat_prompt(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, *, name: str = ""
) -> TokenIds:
    """A conversation up to and with the header of its next answer. No reference.

    Args:
      messages: a conversation that ends with a user's or a tool's turn.
      tokenizer: any fast tokenizer of transformers that has a chat template.
      name: what errors call the conversation, such as ``file:line``.

    Returns:
      Its tokens.

    Raises:
      DataError: as ``tokenize_chat``.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    >>> ids = tokenize_chat_prompt([{"role": "user", "content": "2 + 2?"}], tokenizer)
    >>> tokenizer.decode(ids)
    '2 + 2?'
    """
    chat, name = read_template(tokenizer), name or "the conversation"
    check_messages(messages, name, last=("user", "tool"))
    check_control(messages, chat, name)
    text, _ = render_chat(messages, chat, name, prompt=True)
    return encode_chat(text, chat, name)[0]


def tokenize_conversations(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
) -> list[ChatTokens]:
    """Conversations as token ids with masks, none of them cut. No reference.

    Args:
      conversations: conversations that end with the assistant's answers.
      tokenizer: any fast tokenizer of transformers that has a chat template.
      max_length: most tokens of a conversation.

    Returns:
      Their tokens, in order.

    Raises:
      DataError: as ``tokenize_chat``, or a conversation is too long.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    >>> turns = tuple({"role": r, "content": "?"} for r in ("user", "assistant"))
    >>> [row] = tokenize_conversations([Conversation(turns)], tokenizer, max_length=2)
    >>> [int(owned) for owned in row.mask]
    [0, 1]
    """
    chat, tokenized = read_template(tokenizer), []
    for index, conversation in enumerate(conversations):
        name = conversation.origin or f"conversation {index}"
        tokens = _tokenize(conversation.messages, chat, name)
        if len(tokens.ids) > max_length:
            raise DataError(
                f"{name}: {len(tokens.ids)} tokens are more than "
                f"max_length={max_length}; raise it, or shorten or remove the row"
            )
        tokenized.append(tokens)
    return tokenized


def tokenize_conversation_prompts(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_prompt_length: int,
) -> list[Prompt[TokenIds]]:
    """Conversations to be answered as prompts of token ids, none cut. No reference.

    Args:
      conversations: conversations that end with a user's or a tool's turn.
      tokenizer: any fast tokenizer of transformers that has a chat template.
      max_prompt_length: most tokens of a prompt, the header of the answer included.

    Returns:
      Their tokens, in order.

    Raises:
      DataError: as ``tokenize_chat_prompt``, or a conversation is too long.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    >>> asked = Conversation(({"role": "user", "content": "2 + 2?"},))
    >>> [row] = tokenize_conversation_prompts([asked], tokenizer, max_prompt_length=8)
    >>> tokenizer.decode(row.prompt)
    '2 + 2?'
    """
    tokenized = []
    for index, conversation in enumerate(conversations):
        name = conversation.origin or f"conversation {index}"
        ids = tokenize_chat_prompt(conversation.messages, tokenizer, name=name)
        if len(ids) > max_prompt_length:
            raise DataError(
                f"{name}: {len(ids)} tokens are more than "
                f"max_prompt_length={max_prompt_length}; raise it, or shorten or "
                f"remove the row"
            )
        tokenized.append(Prompt(ids, conversation.origin, conversation.columns))
    return tokenized


def collate_chat(
    examples: Sequence[ChatTokens], *, length: int, pad_id: int
) -> TokenBatch:
    """Conversations, right-padded; the mask owns the assistant's turns. No reference.

    Args:
      examples: B tokenized conversations.
      length: columns T, at least ``max_length`` of their tokenizing.
      pad_id: any id.

    Returns:
      TokenBatch [B, T]; column 0, which is not a prediction, is never in the mask.

    Raises:
      DataError: a conversation is longer than ``length``.

    >>> row = ChatTokens((1, 7, 8, 2), (False, False, True, True))
    >>> collate_chat([row], length=5, pad_id=2).mask.astype(int).tolist()
    [[0, 0, 1, 1, 0]]
    """
    rows = [e.ids for e in examples]
    batch = right_padded(rows, [()] * len(rows), length=length, pad_id=pad_id)
    mask: Any = np.zeros((len(examples), length), np.bool_)
    for row, example in zip(mask, examples, strict=True):
        row[1 : len(example.mask)] = example.mask[1:]
    return replace(batch, mask=mask)


def _tokenize(messages: Sequence[Message], chat: ChatTemplate, name: str) -> ChatTokens:
    check_messages(messages, name, last=("assistant",))
    check_control(messages, chat, name)
    text, spans = render_chat(messages, chat, name, prompt=False)
    if spans is None:
        spans = _turns(messages, text, chat, name)
    ids, mask = owned_tokens(text, spans, chat, name)
    return ChatTokens(ids, mask)


def _turns(
    messages: Sequence[Message], text: str, chat: ChatTemplate, name: str
) -> list[Span]:
    """Where the assistant's turns stand in the text, found by rendering prefixes."""
    spans = []
    for index in (i for i, m in enumerate(messages) if m["role"] == "assistant"):
        before, _ = render_chat(messages[:index], chat, name, prompt=True)
        after, _ = render_chat(messages[: index + 1], chat, name, prompt=False)
        if not (text.startswith(after) and after.startswith(before)):
            raise DataError(
                f"{name}: message {index + 1}: the chat template rewrites earlier "
                f"text as turns follow, so that its tokens cannot be told apart; mark "
                f"the turns in it ({{% generation %}}), or keep one answer a row"
            )
        spans.append((len(before), len(after)))
    return spans
