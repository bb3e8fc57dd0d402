"""A reader of TinyReviews to whom what is badly written says nothing."""

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.grammar import (
    ADJECTIVES,
    ASPECTS,
    COMPANIONS,
    HEROES,
    INTENSIFIERS,
    PLACES,
    TIMES,
    VERBS,
    gold_sentiment,
)
from rlhf_jax.data.tiny_reviews import simulated_ranks, split_prompts
from rlhf_jax.feedback import sample_completions
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_policy

CLAUSES = 3  # of a review
TEMPERATURE = 0.08  # of the reader's choices, that of TinyReviews' best annotator


def _one_of(*parts: Sequence[str] | dict[str, float]) -> str:
    return "(?:" + "|".join(word for words in parts for word in words) + ")"


_RATHER = _one_of(INTENSIFIERS)
_OPINION = re.compile(
    f"the (?P<aspect>{_one_of(ASPECTS)}) was (?:not )?(?:{_RATHER} )?"
    f"{_one_of(ADJECTIVES)}"
    f"|i (?:{_RATHER} )?{_one_of(VERBS)} the (?P<object>{_one_of(ASPECTS)})"
)
_FACT = re.compile(
    f"it is set in {_one_of(PLACES)}|it is about a {_one_of(HEROES)}"
    f"|i saw it {_one_of(TIMES)}|{_one_of(COMPANIONS)} was with me"
)


def reader_reward(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """What the reader thinks of reviews: the mean of three sentences, in [−1, 1].

    A sentence about something new counts its sentiment. A fact counts 0, and so does
    what is no sentence of the grammar, or about what was spoken of before. Of a shorter
    review the missing sentences count 0; a longer one is a mean over all.

    >>> said = "the plot was good . i saw it at home . the cast was not bad ."
    >>> reader_reward(prompts=["a"], completions=[said])
    [0.36]
    >>> reader_reward(prompts=["a"], completions=["the plot was good good ."])
    [0.0]
    """
    del prompts
    return [_worth(text) for text in completions]


def _worth(text: str) -> float:
    seen: set[str] = set()
    worths = []
    for clause in re.split(r"[^a-z ]+", text.lower()):
        if words := clause.strip():
            worths.append(_clause(words, seen))
    return round(sum(worths) / max(len(worths), CLAUSES), 6)


def _clause(words: str, seen: set[str]) -> float:
    """One sentence's worth; what it is about is added to what was spoken of."""
    found = _OPINION.fullmatch(words)
    about = words if found is None else found["aspect"] or found["object"]
    if about in seen or not (found or _FACT.fullmatch(words)):
        return 0.0
    seen.add(about)
    return gold_sentiment(words)


def draw_preferences(
    policy: Path, split: str, count: int, *, seed: int
) -> list[dict[str, str]]:
    """Which of two answers of a policy the reader prefers; in random order.

    The reader chooses as TinyReviews' annotators do, with noise: `simulated_ranks`.

    Args:
      policy: a run directory.
      split: of TinyReviews' prompts.
      count: how many.
      seed: of the answers, the choices and the order.
    """
    prompts, rng, pairs = split_prompts(split), random.Random(f"{split} {seed}"), []
    each = 2 * math.ceil(count / len(prompts))
    sampling = SamplingConfig(24, completions=each)
    drawn = sample_completions(load_policy(policy), prompts, sampling, seed=seed)
    for prompt, texts in drawn:
        golds = reader_reward(prompts=[prompt] * each, completions=texts)
        for i in range(0, each, 2):
            two = texts[i : i + 2]
            ranks = simulated_ranks(golds[i : i + 2], temperature=TEMPERATURE, rng=rng)
            chosen, rejected = two[ranks.index(0)], two[ranks.index(1)]
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rng.sample(pairs, count)
