"""What differs between the kinds of judgement that train a reward model."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from experiments.beginning import Beginning, Learning, read
from experiments.inputs import Examples
from experiments.reading import Parsers, RowKind, usual_parser
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

    parsers: Parsers
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

    return read(config, judgement.parsers, tokenize, model=model, spell=spell)


def pairs(rows: list[Row]) -> list[Any]:
    """Rows of pairs as they are, messages too; stops at the first faulty one."""
    return usual_parser(rows, PAIRS)(rows)


def _ranked_pairs(rows: list[Row]) -> list[Any]:
    """All pairs of rankings."""
    return [pair for ranking in rankings(rows) for pair in ranking_pairs(ranking)]


def _ranked_labels(rows: list[Row]) -> list[Any]:
    """What beats most of a ranking, and what does not."""
    return [label for ranking in rankings(rows) for label in ranking_labels(ranking)]


PAIRS: Parsers = {
    "messages": chat_preferences,
    "ranks": _ranked_pairs,
    "text": preferences,
}
RANKINGS: Parsers = dict.fromkeys(get_args(RowKind), rankings)
LABELS: Parsers = {"messages": chat_labels, "ranks": _ranked_labels, "text": labels}


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
        parsers=PAIRS,
        tokenize=tokenize_pairs,
        collate=collate_preferences,
        terms=pairwise_terms,
        keep=lambda batch, real: dataclasses.replace(batch, weight=batch.weight * real),
        completions=lambda pair: (pair.chosen, pair.rejected),
        packed=_packed_pairs,
    ),
    "ranking": Judgement(
        parsers=RANKINGS,
        tokenize=tokenize_rankings,
        collate=collate_rankings,
        terms=ranking_terms,
        keep=_keep_judged,
        completions=lambda ranking: ranking.completions,
    ),
    "choice": Judgement(
        parsers=RANKINGS,
        tokenize=tokenize_rankings,
        collate=collate_rankings,
        terms=choice_terms,
        keep=_keep_judged,
        completions=lambda ranking: ranking.completions,
    ),
    "binary": Judgement(
        parsers=LABELS,
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
