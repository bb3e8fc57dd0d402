"""What differs between the kinds of judgement that train a reward model."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.beginning import Beginning, Learning, read
from experiments.inputs import Examples, is_chat
from rlhf_jax.data import (
    Row,
    chat_labels,
    chat_preferences,
    collate_labels,
    collate_packed_preferences,
    collate_preferences,
    collate_rankings,
    labels,
    preferences,
    rankings,
    tokenize_chat_labels,
    tokenize_chat_preferences,
    tokenize_labels,
    tokenize_preferences,
    tokenize_rankings,
)
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import ranking_labels, ranking_pairs
from rlhf_jax.models import TransformerConfig
from rlhf_jax.steps import binary_terms, choice_terms, pairwise_terms, ranking_terms

Kind = Literal["pairwise", "ranking", "choice", "binary", "personal"]


class Judgement(NamedTuple):
    """All that differs between the kinds of judgement."""

    parse: Callable[[list[Row]], list[Any]]
    tokenize: Callable[..., tuple[list[Any], int]]
    collate: Callable[..., Any]
    terms: Callable[..., Any]
    keep: Callable[[Any, np.ndarray], Any]  # a batch without its filler rows
    completions: Callable[[Any], tuple[Any, ...]]  # of one judgement
    num_outputs: int = 1
    packed: Callable[..., Any] | None = None  # makes a collate for groups in a row


def read_judgements(
    config: Learning, judgement: Judgement, model: TransformerConfig | None = None
) -> Beginning:
    """Judgements of one kind as token ids, with the policy that made their tokens.

    Args:
      config: from where, and how long.
      judgement: their kind.
      model: the network, where no policy is named.
    """

    def tokenize(texts: list[Any], *args: Any, **limits: Any) -> Examples:
        examples, num_cut = judgement.tokenize(texts, *args, **limits)
        longest = lambda e: len(e.prompt) + max(map(len, judgement.completions(e)))
        return Examples(
            examples,
            lengths=[longest(e) for e in examples],
            num_cut=num_cut,
            collate=judgement.collate,
            keep=judgement.keep,
            packed=judgement.packed,
        )

    def spell(texts: list[Any]) -> Iterable[str]:
        if not of_text(texts):
            raise UserError(
                f"{texts[0].origin}: messages need a tokenizer with a chat template: "
                "give --policy, whose tokenizer has one"
            )
        return (e.prompt + text for e in texts for text in judgement.completions(e))

    return read(config, judgement.parse, tokenize, model=model, spell=spell)


def pairs(rows: list[Row]) -> list[Any]:
    """Rows of pairs as they are, messages too; rankings become all their pairs."""
    if is_chat(rows):
        return chat_preferences(rows)
    if rows and "ranks" in rows[0].values:
        return [pair for ranking in rankings(rows) for pair in ranking_pairs(ranking)]
    return preferences(rows)


def good_or_bad(rows: list[Row]) -> list[Any]:
    """Rows of labels as they are; rankings become what beats most and what does not."""
    if is_chat(rows):
        return chat_labels(rows)
    if rows and "ranks" in rows[0].values:
        return [
            label for ranking in rankings(rows) for label in ranking_labels(ranking)
        ]
    return labels(rows)


def tokenize_pairs(
    examples: list[Any], tokenizer: Any, *, max_length: int, too_long: TooLong = "error"
) -> tuple[list[Any], int]:
    """Pairs of text, or of messages: those go through the chat template, uncut."""
    if of_text(examples):
        return tokenize_preferences(
            examples, tokenizer, max_length=max_length, too_long=too_long
        )
    return tokenize_chat_preferences(examples, tokenizer, max_length=max_length), 0


def tokenize_labelled(
    examples: list[Any], tokenizer: Any, *, max_length: int, too_long: TooLong = "error"
) -> tuple[list[Any], int]:
    """Labelled completions of text, or of messages."""
    if of_text(examples):
        return tokenize_labels(
            examples, tokenizer, max_length=max_length, too_long=too_long
        )
    return tokenize_chat_labels(examples, tokenizer, max_length=max_length), 0


def of_text(examples: list[Any]) -> bool:
    """Whether judgements are of texts, not of messages."""
    return not examples or isinstance(examples[0].prompt, str)


def _packed_pairs(groups: list[Any]) -> Callable[..., Any]:
    """All batches have room for as many pairs a row, so that a step compiles once."""
    most = max(map(len, groups))
    return functools.partial(collate_packed_preferences, pairs=most)


def _keep_judged(batch: Any, real: np.ndarray) -> Any:
    """(tokens, ranks or labels) with −1, no judgement, where a row is a filler."""
    tokens, judged = batch
    return tokens, np.where(real.reshape(-1, *[1] * (judged.ndim - 1)), judged, -1)


JUDGEMENTS: dict[Kind, Judgement] = {
    "pairwise": Judgement(
        parse=pairs,
        tokenize=tokenize_pairs,
        collate=collate_preferences,
        terms=pairwise_terms,
        keep=lambda batch, real: dataclasses.replace(batch, weight=batch.weight * real),
        completions=lambda pair: (pair.chosen, pair.rejected),
        packed=_packed_pairs,
    ),
    "ranking": Judgement(
        parse=rankings,
        tokenize=tokenize_rankings,
        collate=collate_rankings,
        terms=ranking_terms,
        keep=_keep_judged,
        completions=lambda ranking: ranking.completions,
    ),
    "choice": Judgement(
        parse=rankings,
        tokenize=tokenize_rankings,
        collate=collate_rankings,
        terms=choice_terms,
        keep=_keep_judged,
        completions=lambda ranking: ranking.completions,
    ),
    "binary": Judgement(
        parse=good_or_bad,
        tokenize=tokenize_labelled,
        collate=collate_labels,
        terms=binary_terms,
        keep=_keep_judged,
        completions=lambda labelled: (labelled.completion,),
        num_outputs=2,
    ),
}
# Pairs too; `experiments.users` says of whom they are.
JUDGEMENTS["personal"] = JUDGEMENTS["pairwise"]
