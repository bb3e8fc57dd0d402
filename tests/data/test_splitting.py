"""A common prompt ends at a turn or at white space, and both sides stay whole."""

import pytest
from data.malformed import ASK, FIVE, FOUR
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.splitting import split_messages, split_texts, split_transcripts

pytestmark = pytest.mark.fault(23)

MORE = [{"role": "user", "content": "And 3?"}]
NINE = [{"role": "assistant", "content": "9"}]


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("a b c", "a b", "a"),  # an answer is left for the shorter one
        ("a b", "a b c", "a"),
        ("a b ", "a b c", "a"),  # white space is none
        ("a  b", "a  c", "a"),  # all of the white space is the answer's
        ("a\n\tb", "a c", "a"),
        ("blue", "black", ""),
        (" a", " b", ""),
        ("", "a", ""),
    ],
)
def test_texts(chosen, rejected, prompt):
    end = split_texts(chosen, rejected)
    assert chosen[:end] == rejected[:end] == prompt


@settings(deadline=None)
@given(*[st.text(alphabet="ab \n", max_size=12)] * 3)
def test_no_word_is_cut(common, chosen, rejected):
    chosen, rejected = common + chosen, common + rejected
    end = split_texts(chosen, rejected)
    assert chosen[:end] == rejected[:end]
    if end:
        for side in (chosen, rejected):
            assert not side[end - 1].isspace() and side[end].isspace()
            assert side[end:].strip()


def test_transcripts():
    first = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert split_transcripts(first + " d", first + " dd") == len(first)
    # A last turn of the user in which they differ: the answer before it is compared.
    one, two = first.replace("c", "x"), first
    assert two[: split_transcripts(one, two)] == "\n\nHuman: a\n\nAssistant:"
    assert split_transcripts("\n\nHuman: a", "\n\nHuman: a") == 0


@pytest.mark.parametrize(
    "chosen, rejected, end",
    [
        (ASK + FOUR, ASK + FIVE, 1),
        (ASK + FOUR + MORE + NINE, ASK + FOUR + MORE + FOUR, 3),
        (ASK + FOUR + MORE + NINE, ASK + FIVE + MORE + NINE, 1),
        (ASK + FOUR + MORE + NINE, ASK + FOUR + ASK + FOUR, 1),  # a turn of the user
        (ASK + FOUR, ASK + FOUR + MORE + NINE, 1),  # one goes on
        (ASK + FOUR, ASK + FOUR, 1),
        (ASK + FOUR, MORE + FOUR, 0),
        ([], ASK, 0),
    ],
)
def test_messages(chosen, rejected, end):
    assert split_messages(chosen, rejected) == end
