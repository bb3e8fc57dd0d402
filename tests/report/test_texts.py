"""Differences add up to both texts; numbers and shades are what they stand for."""

import random

import pytest

from rlhf_jax.report.texts import number, shade_scale, shaded, signed, word_changes


def test_changes_are_both_texts():
    """What stayed and what went is the first; what stayed and what came the other."""
    words = ["a", "film", ".", " ", "\n", "warm", "don't", "é", "—"]
    rng = random.Random(0)
    for _ in range(200):
        texts = ["".join(rng.choices(words, k=rng.randrange(12))) for _ in range(2)]
        changes = word_changes(*texts)
        for text, kind in zip(texts, ("gone", "new"), strict=True):
            kept = [c.text for c in changes if c.kind in ("same", kind)]
            assert "".join(kept) == text
        assert texts[0] != texts[1] or not changes or changes[0].kind == "same"


def test_what_stays_is_found():
    changes = word_changes("the film was slow and dull .", "the film was warm .")
    assert [c.text for c in changes if c.kind == "same"] == ["the film was ", "."]


@pytest.mark.parametrize(
    "value, shown",
    [(0.1234567, "0.1235"), (12345.678, "12,346"), (-2.0, "−2"), (float("-inf"), "−∞")],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_nothing_is_no_minus():
    assert signed(-0.0001) == "0.00" and signed(float("nan")) == "NaN"


def test_shades_go_to_the_scale_and_no_further():
    pieces = shaded(["a"] * 5, [0.0, 1.0, -2.0, 9.0, float("nan")], scale=2.0)
    assert [piece.shade for piece in pieces] == ["", "p4", "n8", "p8", ""]
    assert shade_scale([]) == 0.25 and shade_scale([1e9]) == 100.0
