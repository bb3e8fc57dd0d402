"""Where examples come from: files, TFDS data sets, and what is held back of them."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rlhf_jax.data import (
    Conversation,
    Row,
    collate_chat,
    collate_demonstrations,
    collate_packed,
    conversation_prompts,
    conversations,
    demonstrations,
    pack,
    prompts,
    read_rows,
    rename_columns,
    tokenize_conversation_prompts,
    tokenize_conversations,
    tokenize_demonstrations,
    tokenize_prompts,
)
from rlhf_jax.data.sources import TFDS_PREFIX
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from."""

    path: str
    """A .jsonl, .csv or .parquet file, plain or .gz; or tfds:NAME/CONFIG:SPLIT, with a
    split such as train or train[:10%]."""
    eval_path: str | None = None
    """Examples to evaluate on; none holds some of the training examples back."""
    eval_fraction: float = 0.05
    """Share of the examples held back where there is no eval_path."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Columns to rename: the file's own name, then the one that the script expects."""
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
    return rename_columns(rows, config.columns) if config.columns else rows


class Imitation(NamedTuple):
    """What differs between plain demonstrations and conversations, tokenized."""

    examples: list[Any]
    num_cut: int
    collate: Callable[..., Any]
    lengths: list[int]

    def packed(self, width: int) -> "Imitation":
        """Rows of several examples, up to ``width`` tokens."""
        groups = pack(self.examples, self.lengths, width=width)
        collate = functools.partial(collate_packed, collate=self.collate)
        return Imitation(groups, self.num_cut, collate, [width] * len(groups))


def parse_demonstrations(rows: list[Row]) -> list[Any]:
    """Demonstrations, or conversations where the first row is one."""
    return conversations(rows) if _is_chat(rows) else demonstrations(rows)


def tokenize_imitation(
    texts: list[Any], tokenizer: Any, *, max_length: int, too_long: TooLong
) -> Imitation:
    """What supervised fine-tuning learns from, as token ids."""
    if isinstance(texts[0], Conversation):
        chats = tokenize_conversations(texts, tokenizer, max_length=max_length)
        return Imitation(chats, 0, collate_chat, [len(chat.ids) for chat in chats])
    examples, num_cut = tokenize_demonstrations(
        texts, tokenizer, max_length=max_length, too_long=too_long
    )
    lengths = [len(e.prompt + e.completion) for e in examples]
    return Imitation(examples, num_cut, collate_demonstrations, lengths)


def parse_prompts(rows: list[Row], *, prompt_words: int | None) -> list[Any]:
    """Prompts of text, or conversations to answer where the first row is one."""
    if _is_chat(rows):
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


def _is_chat(rows: list[Row]) -> bool:
    values = rows[0].values if rows else {}
    return "messages" in values or isinstance(values.get("prompt"), list)
