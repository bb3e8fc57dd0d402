"""What the scripts learn from and are asked, as tokens and as batches of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments.reading import DataConfig, Parsers, read_data, tokenize_data
from rlhf_jax.data import (
    Conversation,
    batches,
    collate_chat,
    collate_demonstrations,
    collate_packed,
    collate_prompts,
    conversation_prompts,
    conversations,
    demonstrations,
    make_loader,
    pack,
    prompts,
    tokenize_conversation_prompts,
    tokenize_conversations,
    tokenize_demonstrations,
    tokenize_prompts,
)
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError
from rlhf_jax.stages import pad_id
from rlhf_jax.types import TokenBatch

Item = TypeVar("Item")


class Examples(NamedTuple):
    """Tokenized examples of one kind, and what makes batches of that kind."""

    examples: list[Any]
    lengths: list[int]  # tokens of each; the most, where it has several completions
    num_cut: int
    collate: Callable[..., Any]  # (examples, length, pad_id)
    keep: Callable[[Any, np.ndarray], Any]  # a batch without its filler rows
    packed: Callable[..., Any] | None  # makes a collate for groups that share a row


class Data(NamedTuple):
    """Examples to learn from and others to evaluate on, as batches."""

    learned: Examples
    held_out: Examples
    rows: list[Any]  # the examples to learn from, or groups of them that share a row
    collate: Callable[..., Any]  # of rows
    length: int  # columns of a row
    own_length: int  # columns where each example has a row of its own
    pad_id: int

    def loader(self, batch_size: int, *, seed: int) -> Any:
        """Batches of rows to learn from, without end."""
        collate = functools.partial(
            self.collate, length=self.length, pad_id=self.pad_id
        )
        return make_loader(self.rows, batch_size=batch_size, seed=seed, collate=collate)

    def held_out_batches(self, batch_size: int) -> Iterator[Any]:
        """Every held-out example once, in a row of its own."""
        collate = functools.partial(
            self.held_out.collate, length=self.own_length, pad_id=self.pad_id
        )
        for batch, real in batches(self.held_out.examples, batch_size, collate):
            yield self.held_out.keep(batch, real)


def make_data(
    learned: Examples,
    held_out: Examples,
    *,
    pack_length: int | None,
    context: int,
    pad_id: int,
) -> Data:
    """Each example in a row of its own; or those to learn from packed.

    Args:
      learned: examples to learn from.
      held_out: examples to evaluate on.
      pack_length: tokens of a row that several examples share; None gives each its own.
      context: most tokens of a row that the network takes.
      pad_id: what stands after a row.

    Raises:
      UserError: such examples do not share rows; or a packed row does not hold the
        longest, or not fit the context.
    """
    own = max(learned.lengths + held_out.lengths)
    if pack_length is None:
        rows = learned.examples
        return Data(learned, held_out, rows, learned.collate, own, own, pad_id)
    if learned.packed is None:
        raise UserError(
            f"pack_length = {pack_length}: several such examples cannot share a row; "
            "leave it out"
        )
    check_pack_length(pack_length, least=max(learned.lengths), most=context)
    rows = pack(learned.examples, learned.lengths, width=pack_length)
    collate = learned.packed(rows)
    return Data(learned, held_out, rows, collate, pack_length, own, pad_id)


def check_pack_length(length: int, *, least: int, most: int) -> None:
    """A packed row holds what is longest, and fits the network's context."""
    if not least <= length <= most:
        raise UserError(
            f"pack_length = {length}: expected {least}, the longest of what shares a "
            f"row, to {most}, the network's context"
        )


DEMONSTRATIONS: Parsers = {
    "messages": conversations,
    "ranks": demonstrations,
    "text": demonstrations,
}


def tokenize_imitation(
    texts: list[Any], tokenizer: Any, *, max_length: int, too_long: TooLong
) -> Examples:
    """What supervised fine-tuning learns from, as token ids."""
    if of_messages(texts):
        examples = tokenize_conversations(texts, tokenizer, max_length=max_length)
        lengths = [len(chat.ids) for chat in examples]
        num_cut, collate = 0, collate_chat
    else:
        examples, num_cut = tokenize_demonstrations(
            texts, tokenizer, max_length=max_length, too_long=too_long
        )
        lengths = [len(e.prompt + e.completion) for e in examples]
        collate = collate_demonstrations
    packed = lambda groups: functools.partial(collate_packed, collate=collate)
    return Examples(examples, lengths, num_cut, collate, _keep_rows, packed)


def _keep_rows(batch: TokenBatch, real: np.ndarray) -> TokenBatch:
    """Nothing to learn where a row is a filler."""
    return dataclasses.replace(batch, mask=batch.mask & real[:, None])


class Prompts(NamedTuple):
    """What a policy is asked while it learns, and what when it is evaluated."""

    learned: list[Any]
    held_out: list[Any]
    collate: Callable[..., TokenBatch]

    def loader(self, batch_size: int, *, seed: int) -> Any:
        """Batches without end."""
        return make_loader(
            self.learned, batch_size=batch_size, seed=seed, collate=self.collate
        )

    def held_out_batch(self, count: int) -> TokenBatch:
        """So many of those that are held out, again from the first if need be."""
        asked = [self.held_out[i % len(self.held_out)] for i in range(count)]
        return self.collate(asked)


def read_prompts(
    config: DataConfig,
    tokenizer: Any,
    *,
    words: int | None = None,
    lengths: Sequence[int],
    run_dir: Path,
    seed: int,
) -> Prompts:
    """Prompts as token ids.

    Args:
      config: where they come from.
      tokenizer: the policy's.
      words: takes so many first words of a text column; None reads a prompt column.
      lengths: widths of a batch; no prompt is longer than the last.
      run_dir: where the rows are put that cannot be used.
      seed: of what is held out.
    """
    texts = read_data(config, prompt_parsers(words), run_dir=run_dir, seed=seed)
    tokenize = functools.partial(
        tokenize_asked,
        tokenizer=tokenizer,
        max_prompt_length=lengths[-1],
        too_long=config.too_long,
    )
    learned, held_out = tokenize_data(config, texts, tokenize)
    collate = functools.partial(
        collate_prompts, length=lengths, pad_id=pad_id(tokenizer)
    )
    return Prompts(learned, held_out, collate)


def prompt_parsers(words: int | None) -> Parsers:
    """Prompts of text, or so many of its first words; or conversations to answer."""
    of_text = functools.partial(prompts, prompt_words=words)
    return {"messages": conversation_prompts, "ranks": of_text, "text": of_text}


def tokenize_asked(
    texts: list[Any], tokenizer: Any, *, max_prompt_length: int, too_long: TooLong
) -> list[Any]:
    """Prompts as token ids, through the chat template where they are conversations."""
    if of_messages(texts):
        return tokenize_conversation_prompts(
            texts, tokenizer, max_prompt_length=max_prompt_length
        )
    return tokenize_prompts(
        texts, tokenizer, max_prompt_length=max_prompt_length, too_long=too_long
    )[0]


def of_messages(texts: list[Any]) -> bool:
    """Whether they are conversations, not texts."""
    return bool(texts) and isinstance(texts[0], Conversation)
