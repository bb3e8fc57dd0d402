"""Where examples come from: files, TFDS data sets, and what is held back of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rlhf_jax.data import (
    Conversation,
    Row,
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
    read_rows,
    read_transcripts,
    rename_columns,
    tokenize_conversation_prompts,
    tokenize_conversations,
    tokenize_demonstrations,
    tokenize_prompts,
)
from rlhf_jax.data.sources import TFDS_PREFIX
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError
from rlhf_jax.stages import pad_id
from rlhf_jax.types import TokenBatch

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from."""

    path: str
    """A .jsonl, .json, .csv or .parquet file, plain or .gz; or tfds:NAME/CONFIG:SPLIT,
    with a split such as train or train[:10%]."""
    eval_path: str | None = None
    """Examples to evaluate on; none holds some of the training examples back."""
    eval_fraction: float = 0.05
    """Share of the examples held back where there is no eval_path."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Columns to rename: the file's own name, then the one that the script expects."""
    transcripts: bool = False
    """Reads transcripts of Human: and Assistant: turns as messages, which go through
    the tokenizer's chat template."""
    too_long: TooLong = "error"
    """Rows that do not fit: stop there, or keep the end of their prompts."""
    data_dir: Path | None = None
    """Where TFDS data sets are built; none is TFDS's own default."""

    def __post_init__(self):
        if not 0 < self.eval_fraction < 1:
            raise UserError(
                f"data.eval_fraction = {self.eval_fraction}: expected a share between "
                "0 and 1"
            )


def read_data(
    config: DataConfig, parse: Callable[[list[Row]], list[Item]], *, seed: int
) -> tuple[list[Item], list[Item]]:
    """(training, held-out) examples; the same seed holds the same ones back."""
    examples = parse(_read(config, config.path))
    if config.eval_path is not None:
        return examples, parse(_read(config, config.eval_path))
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = max(1, round(config.eval_fraction * len(examples)))
    shuffled = [examples[i] for i in order]
    return shuffled[held_out:], shuffled[:held_out]


def _read(config: DataConfig, path: str) -> list[Row]:
    split = None
    if path.startswith(TFDS_PREFIX) and path.count(":") > 1:
        name, split = path.removeprefix(TFDS_PREFIX).split(":", 1)
        path = TFDS_PREFIX + name
    rows = read_rows(path, split=split, data_dir=config.data_dir)
    rows = rename_columns(rows, config.columns) if config.columns else rows
    return read_transcripts(rows) if config.transcripts else rows


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


def parse_demonstrations(rows: list[Row]) -> list[Any]:
    """Demonstrations, or conversations where the first row is one."""
    return conversations(rows) if is_chat(rows) else demonstrations(rows)


def tokenize_imitation(
    texts: list[Any], tokenizer: Any, *, max_length: int, too_long: TooLong
) -> Examples:
    """What supervised fine-tuning learns from, as token ids."""
    if isinstance(texts[0], Conversation):
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
    words: int | None,
    lengths: Sequence[int],
    seed: int,
) -> Prompts:
    """Prompts as token ids.

    Args:
      config: where they come from.
      tokenizer: the policy's.
      words: takes so many first words of a text column; None reads a prompt column.
      lengths: widths of a batch; no prompt is longer than the last.
      seed: of what is held out.
    """
    parse = functools.partial(parse_prompts, prompt_words=words)
    tokenize = functools.partial(
        tokenize_asked,
        tokenizer=tokenizer,
        max_prompt_length=lengths[-1],
        too_long=config.too_long,
    )
    learned, held_out = map(tokenize, read_data(config, parse, seed=seed))
    collate = functools.partial(
        collate_prompts, length=lengths, pad_id=pad_id(tokenizer)
    )
    return Prompts(learned, held_out, collate)


def parse_prompts(rows: list[Row], *, prompt_words: int | None) -> list[Any]:
    """Prompts of text, or conversations to answer where the first row is one."""
    if is_chat(rows):
        return conversation_prompts(rows)
    return prompts(rows, prompt_words=prompt_words)


def tokenize_asked(
    texts: list[Any], tokenizer: Any, *, max_prompt_length: int, too_long: TooLong
) -> list[Any]:
    """Prompts as token ids, through the chat template where they are conversations."""
    if isinstance(texts[0], Conversation):
        return tokenize_conversation_prompts(
            texts, tokenizer, max_prompt_length=max_prompt_length
        )
    return tokenize_prompts(
        texts, tokenizer, max_prompt_length=max_prompt_length, too_long=too_long
    )[0]


def is_chat(rows: list[Row]) -> bool:
    """Whether the first row has messages in place of text."""
    values = rows[0].values if rows else {}
    texts = ("prompt", "completion", "chosen", "rejected")
    return "messages" in values or any(isinstance(values.get(c), list) for c in texts)
