"""A tokenizer's chat template: what it makes of messages, as text and as token ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from rlhf_jax.data.conversations import Message
from rlhf_jax.data.records import TokenIds
from rlhf_jax.data.row import DataError

Span = tuple[int, int]  # first character and the one after the last


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer, and what is asked of it once for all conversations."""

    tokenizer: PreTrainedTokenizerFast
    template: str
    marked: bool  # it says itself which text is the assistant's
    control: tuple[str, ...]  # texts that become special tokens
    adds_bos: bool  # by itself, before any text


def read_template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The template, and what of the tokenizer it meets with.

    Raises:
      DataError: there is no template, or none that is the default.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            "the tokenizer has no chat template, or several and none called "
            "'default'; set its chat_template, or give columns of plain text"
        ) from error
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    special |= set(tokenizer.all_special_tokens)
    control = tuple(sorted(text for text in special if text.strip()))
    adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    marked = re.search(r"{%-?\s*generation\s*-?%}", template) is not None
    return ChatTemplate(tokenizer, template, marked, control, adds_bos)


def render_chat(
    messages: Sequence[Message], chat: ChatTemplate, name: str, *, prompt: bool
) -> tuple[str, list[Span] | None]:
    """The template's text, and the spans that its marks own; None without marks."""
    marked = not prompt and chat.marked
    given = [{k: v for k, v in m.items() if v is not None} for m in messages]
    render: Any = render_jinja_template  # annotated as less than it returns
    try:
        [text], spans = render(
            conversations=[given],
            chat_template=chat.template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=prompt,
            **chat.tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template is a program: it raises what it likes
        raise DataError(
            f"{name}: the chat template refuses the conversation "
            f"({' '.join(str(error).split())}); correct the row or the template"
        ) from error
    return text, spans[0] if marked else None


def encode_chat(
    text: str, chat: ChatTemplate, name: str
) -> tuple[TokenIds, list[Span]]:
    """The ids of a template's text, after <bos> if it is missing, and their spans."""
    encoded = chat.tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=False,
        return_offsets_mapping=True,
    )
    ids, spans = tuple(encoded["input_ids"]), encoded["offset_mapping"]
    bos: Any = chat.tokenizer.bos_token_id  # annotated as more than the int that it is
    if ids[:2] == (bos, bos):
        raise DataError(
            f"{name}: the chat template begins with {chat.tokenizer.bos_token!r} "
            f"twice; remove one from the template"
        )
    if chat.adds_bos and ids[:1] != (bos,):
        return (bos, *ids), [(0, 0), *spans]
    return ids, spans


def check_control(messages: Sequence[Message], chat: ChatTemplate, name: str) -> None:
    # The template's text and the data's are parsed as one, so a text that spells a
    # special token would become it: refused, that data cannot end a response.
    for number, message in enumerate(messages, 1):
        text = "\n".join(filter(None, message.values()))
        for token in chat.control:
            if token in text:
                raise DataError(
                    f"{name}: message {number} spells {token!r}, a special token of "
                    f"the tokenizer; write it otherwise or remove the row"
                )


def owned_tokens(
    text: str, spans: Sequence[Span], chat: ChatTemplate, name: str
) -> tuple[TokenIds, tuple[bool, ...]]:
    """The ids of a template's text, and which of them begin in one of the spans.

    White space after the special token that ends a span is not part of it.
    """
    owned = bytearray(len(text) + 1)  # of each character
    for start, end in spans:
        turn = text[start:end].rstrip()
        if not turn.endswith(chat.control):
            turn = text[start:end]
        owned[start : start + len(turn)] = b"\1" * len(turn)
    ids, offsets = encode_chat(text, chat, name)
    # Some tokenizers trim white space from offsets: of a token that is nothing else
    # only its end is left, so the character before that says whose it is.
    mask = tuple(bool(owned[s if s < e else max(s - 1, 0)]) for s, e in offsets)
    if not any(mask):
        raise DataError(
            f"{name}: the chat template gives the assistant's turns no token; correct "
            f"its {{% generation %}} marks, or what it does with role 'assistant'"
        )
    return ids, mask
