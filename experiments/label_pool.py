"""Pairs of reviews that could be labelled, much of them the same again."""

import dataclasses
import random
from typing import NamedTuple

import numpy as np

from experiments.ensemble import Pairs
from rlhf_jax.data import (
    Preference,
    collate_preferences,
    tokenize_preferences,
    train_tokenizer,
)
from rlhf_jax.data.grammar import ADJECTIVES, POLARITY, gold_sentiment, sample_review
from rlhf_jax.data.tiny_reviews import COOLEST, simulated_ranks, split_prompts
from rlhf_jax.models import TransformerConfig
from rlhf_jax.stages import pad_id

COMMON = ("liked", "disliked"), ("good", "bad")  # verbs and adjectives, warm and cold

PROMPTS = {split: split_prompts(split) for split in ("train", "test")}


class Pool(NamedTuple):
    """Pairs as tokens, with what a person would say of them."""

    pairs: Pairs  # [N, T]
    labels: np.ndarray  # [N] int, 1: the first is better


def make_pools(
    model: TransformerConfig, *, pool: int, repeated: float, held_out: int, seed: int
) -> tuple[Pool, Pool, TransformerConfig]:
    """What can be labelled, what is held out, and the model with its vocabulary.

    Args:
      model: how long a pair may be, and how large the vocabulary.
      pool: pairs that can be labelled.
      repeated: share of them that have the common words alone.
      held_out: pairs to evaluate on.
      seed: of all of them and of their labels.
    """
    rng = random.Random(f"active/{seed}")
    common = round(repeated * pool)
    asked = [make_pair(rng, "train", common=n < common) for n in range(pool)]
    rng.shuffle(asked)
    others = [make_pair(rng, "test", common=False) for _ in range(held_out)]
    tokenizer = train_tokenizer(
        (p.prompt + text for p in asked for text in (p.chosen, p.rejected)),
        model.vocab_size,
    )

    def tokens(pairs: list[Preference[str]], temperature: float) -> Pool:
        ids, _ = tokenize_preferences(
            pairs, tokenizer, max_length=model.max_length, too_long="error"
        )
        sides = [p.prompt + text for p in ids for text in (p.chosen, p.rejected)]
        length, pad = max(map(len, sides)), pad_id(tokenizer)
        batch = collate_preferences(ids, length=length, pad_id=pad)
        golds = [[gold_sentiment(t) for t in (p.chosen, p.rejected)] for p in pairs]
        ranks = [simulated_ranks(g, temperature=temperature, rng=rng) for g in golds]
        labels = np.array([first < second for first, second in ranks], np.int32)
        return Pool(Pairs(batch.chosen, batch.rejected), labels)

    model = dataclasses.replace(model, vocab_size=len(tokenizer))
    return tokens(asked, COOLEST), tokens(others, 1e-6), model


def make_pair(rng: random.Random, split: str, *, common: bool) -> Preference[str]:
    """Two reviews of unequal sentiment, in random order."""
    while True:
        first, second = (make_review(rng, common=common) for _ in range(2))
        if gold_sentiment(first) != gold_sentiment(second):
            return Preference(rng.choice(PROMPTS[split]), first, second)


def make_review(rng: random.Random, *, common: bool) -> str:
    """A review, all its opinions in the common words if that is asked for."""
    words = sample_review(rng).split(" ")
    if common:
        words = [
            COMMON[word in ADJECTIVES][POLARITY[word] < 0] if word in POLARITY else word
            for word in words
        ]
    return " ".join(words)
