"""Lengths, duplicates and length bias of a handful of records, counted by hand."""

import math
import random

import pytest
from data.malformed import ASK, FIVE, FOUR
from scipy.stats import binomtest

from rlhf_jax.data import (
    Conversation,
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
)
from rlhf_jax.data.statistics import (
    Duplicates,
    count_duplicates,
    count_lengths,
    length_bias,
    length_percentiles,
    pairs,
    parts,
)

CHAT = Preference(tuple(ASK), tuple(FOUR), tuple(FIVE))
RANKING = Ranking("a b", ("c", "d e", "f g h"), ranks=(1, 0, 1))


def test_parts_and_words():
    records = [
        Prompt("a b"),
        Demonstration("", "a b c"),
        Labeled("a", "b c", 1),
        RANKING,
        CHAT,
        Conversation((*ASK, *FOUR)),
    ]
    assert [[name for name, _ in parts(record)] for record in records] == [
        ["prompt"],
        ["completion"],
        ["prompt", "completion"],
        ["prompt", "completion", "completion", "completion"],
        ["prompt", "chosen", "rejected"],
        ["messages"],
    ]
    # "2 + 2?" is three words; with its answer below it, four.
    words = [[2], [3], [1, 2], [2, 1, 2, 3], [3, 1, 1], [4]]
    assert count_lengths(records, None) == words


def test_tokens_are_those_of_the_tokenizer(byte_tokenizer):
    records = [Preference("é", "ab", "abc")] * 3000  # more texts than one call takes
    assert count_lengths(records, byte_tokenizer) == [[2, 2, 3]] * 3000


def test_percentiles_are_observed_lengths():
    records = [Demonstration("p", " w" * n) for n in range(1, 101)]
    lengths = [[1, n] for n in range(1, 101)]
    found = {name: (n, at) for name, n, at in length_percentiles(records, lengths)}
    # The least of 100 lengths with 5 % … of the others at or below it.
    assert found["completion"] == (100, [6, 26, 51, 76, 96, 100, 100])
    assert found["prompt"] == (100, [1] * 7)
    assert found["row"] == (100, [7, 27, 52, 77, 97, 101, 101])


def test_a_row_is_the_prompt_with_its_longest_answer():
    rows = length_percentiles([RANKING, CHAT], [[2, 1, 2, 3], [3, 1, 1]])
    assert {name: at[-1] for name, _, at in rows} == {
        "prompt": 3,
        "completion": 3,
        "chosen": 1,
        "rejected": 1,
        "row": 5,
    }
    [prompt] = length_percentiles([Prompt("a")], [[1]])
    assert prompt[0] == "prompt"  # and no row beside it


def test_pairs_leave_ties_out():
    assert pairs(CHAT) == [(CHAT.chosen, CHAT.rejected)]
    assert pairs(RANKING) == [("d e", "c"), ("d e", "f g h")]
    assert pairs(Ranking("a", ("b", "c"), (0, 0))) == []
    assert pairs(Labeled("a", "b", 1)) == []


@pytest.mark.parametrize(
    "records, counts",
    [
        ([], (0, 0, 0, 0)),
        ([CHAT, CHAT], (1, 1, 1, 0)),
        ([CHAT, Preference(CHAT.prompt, CHAT.rejected, CHAT.chosen)], (1, 0, 0, 1)),
        # Another annotator says the same: a pair again, not the same record.
        ([Preference("a", "b", "c"), Preference("a", "b", "c", 2)], (1, 0, 1, 0)),
        ([Preference("a", "b", "c"), Preference("x", "c", "b")], (0, 0, 0, 0)),
        # d e over c is in the ranking; so is d e over f g h.
        ([RANKING, Preference("a b", "c", "d e")], (1, 0, 0, 1)),
        ([Demonstration("", "a"), Demonstration("", "a")], (0, 1, 0, 0)),
        ([Labeled("p", "a", 1), Labeled("p", "a", 0)], (1, 0, 0, 0)),
        ([Conversation((*ASK, *FOUR))] * 3, (0, 2, 0, 0)),
    ],
)
def test_duplicates(records, counts):
    assert count_duplicates(records) == Duplicates(*counts)


def test_where_a_row_comes_from_does_not_tell_it_apart():
    twice = [Prompt("a", "rows:1"), Prompt("a", "rows:2")]
    assert count_duplicates(twice).records == 1


def test_length_bias_counts_a_record_once():
    records = [Preference("p", "a b", "c"), Preference("p", "a", "b"), RANKING]
    bias = length_bias(records, count_lengths(records, None))
    # Of the ranking, "d e" is longer than "c" and shorter than "f g h": one half.
    assert (bias.share, bias.records, bias.equal) == (0.75, 2, 1)
    nothing = length_bias([Prompt("a")], [[1]])
    assert math.isnan(nothing.share) and nothing.records == 0


def test_an_empty_prompt_does_not_shift_the_answers():
    records = [Preference("", "a b c", "d"), Ranking("", ("a", "b c"), (0, 1))]
    bias = length_bias(records, count_lengths(records, None))
    assert (bias.share, bias.records) == (0.5, 2)


def test_the_interval_is_wilsons():
    rng = random.Random(0)
    for count in (1, 7, 100):
        longer = [rng.random() < 0.8 for _ in range(count)]
        records = [
            Preference("p", *(("a b", "c") if w else ("c", "a b"))) for w in longer
        ]
        bias = length_bias(records, count_lengths(records, None))
        wanted = binomtest(sum(longer), count).proportion_ci(method="wilson")
        assert bias.low == pytest.approx(wanted.low, abs=1e-7)
        assert bias.high == pytest.approx(wanted.high, abs=1e-7)
