"""The grammar and the gold sentiment that the main experiment stands on."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import encode_texts, gold_sentiment, train_tokenizer
from rlhf_jax.data.grammar import (
    ADJECTIVES,
    ASPECTS,
    INTENSIFIERS,
    NEGATIONS,
    VERBS,
    review_prompts,
    sample_review,
)

RNG = random.Random(1)
PROMPTS = review_prompts()
REVIEWS = [sample_review(RNG) for _ in range(10_000)]
WORDS = [
    *ADJECTIVES,
    *VERBS,
    *INTENSIFIERS,
    *NEGATIONS,
    *ASPECTS,
    "the",
    "was",
    ".",
    ",",
]


@pytest.mark.parametrize(
    "text, gold",
    [
        ("the plot was good .", 0.6),
        ("the plot was awful .", -0.9),
        ("i loved the plot .", 0.9),
        ("the plot was very good .", 0.78),  # 1.3 · 0.6
        ("the plot was very superb .", 1.0),  # 1.17, clipped
        ("the plot was not good .", -0.36),  # −0.6 · 0.6
        ("the plot was never rather dull .", 0.288),  # −0.6 · 0.8 · −0.6
        ("i never really liked the plot .", -0.36),  # −0.6 · 1.2 · 0.5
        ("the plot was good . the cast was bad .", -0.1),  # (0.6 − 0.8) / 2
        ("the plot was good . the plot was good . the cast was bad .", -0.1),
        # Something stands between: neither negated nor intensified.
        ("not the good plot", 0.6),
        ("very not good", -0.36),
        ("not . good", 0.6),
        # Broken text.
        ("good good good", 0.6),
        ("GOOD!!plot\n", 0.6),
        ("goodness badly", 0.0),
        ("the plot was", 0.0),
        ("not very", 0.0),
        ("", 0.0),
        ("é🎬", 0.0),
    ],
)
def test_gold_by_hand(text, gold):
    assert gold_sentiment(text) == pytest.approx(gold, abs=1e-9)


@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_gold_of_any_words(words):
    text = " ".join(words)
    gold = gold_sentiment(text)
    assert -1.0 <= gold <= 1.0
    # Saying everything twice, with a full stop between, changes nothing.
    assert gold_sentiment(f"{text} . {text}") == gold
    if not set(words) & (ADJECTIVES.keys() | VERBS.keys()):
        assert gold == 0.0


@given(st.text())
def test_gold_of_any_text(text):
    assert -1.0 <= gold_sentiment(text) <= 1.0


def test_saying_a_clause_again_does_not_raise_it():
    for review in REVIEWS[:500]:
        clauses = review.split(" . ")
        for clause in clauses:
            assert gold_sentiment(f"{review} {clause} .") == gold_sentiment(review)


def test_grades_are_balanced():
    for words in (ADJECTIVES, VERBS):
        assert sorted(words.values()) == sorted(-value for value in words.values())


def test_best_reviews_reach_nine_tenths():
    best = " the plot was superb . i loved the cast . the music was very great ."
    assert gold_sentiment(best) == pytest.approx((0.9 + 0.9 + 1.0) / 3, abs=1e-6)
    assert max(map(gold_sentiment, REVIEWS)) > 0.9
    assert min(map(gold_sentiment, REVIEWS)) < -0.9


def test_reviews_are_varied_neutral_on_average_and_spread_wide():
    assert len(set(REVIEWS)) >= 9_900
    gold = [gold_sentiment(review) for review in REVIEWS]
    # The standard error of the mean of 10,000 with std 0.52 is 0.005.
    assert abs(statistics.mean(gold)) < 0.02
    assert statistics.pstdev(gold) > 0.45
    assert sum(g > 0.3 for g in gold) > 3_000 < sum(g < -0.3 for g in gold)


def test_reviews_are_in_the_expected_form():
    for review in REVIEWS[:1000]:
        assert review.startswith(" ") and review.endswith(" .") and review.islower()
        clauses = review.removesuffix(" .").split(" . ")
        assert len(clauses) == 3
        opinions = [clause for clause in clauses if gold_sentiment(clause)]
        assert len(opinions) in (2, 3)
    assert any(word in review.split() for word in NEGATIONS for review in REVIEWS)


def test_prompts_are_neutral_and_distinct():
    assert len(set(PROMPTS)) == len(PROMPTS) == 768
    assert {gold_sentiment(prompt) for prompt in PROMPTS} == {0.0}
    # They neither negate nor intensify what follows.
    for prompt in PROMPTS:
        assert gold_sentiment(f"{prompt} good") == 0.6


def test_reviews_fit_a_small_budget_of_tokens():
    """With 512 tokens every word is one token."""
    texts = [RNG.choice(PROMPTS) + review for review in REVIEWS[:8000]]
    tokenizer = train_tokenizer(texts, vocab_size=512)
    assert len(tokenizer) <= 512
    sizes = [len(ids) + 1 for ids in encode_texts(tokenizer, REVIEWS)]  # with <eos>
    assert max(sizes) <= 24
    assert 17 < statistics.mean(sizes) < 20
    assert sizes[0] == len(REVIEWS[0].split()) + 1
    sizes = [len(ids) + 1 for ids in encode_texts(tokenizer, PROMPTS)]  # with <bos>
    assert max(sizes) <= 12
