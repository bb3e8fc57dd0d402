"""Transcripts as messages: what was said stays, and who said it."""

import re

import pytest

from rlhf_jax.data import (
    DataError,
    Row,
    chat_labels,
    chat_preferences,
    conversation_prompts,
    conversations,
    preferences,
    read_rows,
    read_transcripts,
)

ASKED = "\n\nHuman: 2 + 2?\n\nAssistant: 5\n\nHuman: Sure?"
MESSAGES = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "Sure?"},
)
NO, YES = ({"role": "assistant", "content": text} for text in ("No.", "Yes."))


def read(values):
    return read_transcripts([Row(values, "hh.jsonl", 3)])


@pytest.mark.fault(23)
def test_pairs_whole_or_with_their_prompt():
    whole = {side: f"{ASKED}\n\nAssistant: {x}." for side, x in
             (("chosen", "No"), ("rejected", "Yes"))}  # fmt: skip
    split = {"prompt": ASKED + "\n\nAssistant:", "chosen": " No.", "rejected": " Yes."}
    for values in (whole, split):
        [pair] = chat_preferences(read(values | {"weight": 0.5}))
        assert (pair.prompt, pair.chosen, pair.rejected) == (MESSAGES, (NO,), (YES,))
        assert (pair.weight, pair.origin) == (0.5, "hh.jsonl:3")


def test_texts_prompts_and_labels():
    [chat] = conversations(read({"text": ASKED + "\n\nAssistant: No."}))
    assert chat.messages == (*MESSAGES, NO)
    for end in ("", "\n\nAssistant:", "\n\nAssistant: "):
        [asked] = conversation_prompts(read({"prompt": ASKED + end}))
        assert asked.messages == MESSAGES
    values = {"prompt": ASKED, "completion": " No.", "label": 1}
    [labelled] = chat_labels(read(values))
    assert (labelled.prompt, labelled.completion) == (MESSAGES, (NO,))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"text": "Human: 2 + 2?"}, "column 'text': expected a transcript that begins"),
        ({"text": "Hello\n\nHuman: 2 + 2?"}, "column 'text': expected a transcript"),
        ({"prompt": None}, "column 'prompt': expected text that is not empty"),
        ({"chosen": [NO], "rejected": [YES]}, "column 'chosen': expected text"),
    ],
)
def test_what_is_no_transcript(values, message):
    with pytest.raises(DataError, match=f"^hh.jsonl:3: {message}"):
        read(values)


def test_turns_of_one_speaker_are_one_message():
    text = (
        "\n\nHuman: 2\n\nHuman: + 2?\n\nAssistant: 5\n\nAssistant:\n\nAssistant: No, 4"
    )
    [chat] = conversations(read({"text": text}))
    assert [m["content"] for m in chat.messages] == ["2\n\n+ 2?", "5\n\nNo, 4"]


def test_real_transcripts_say_the_same(shared_data):
    """Pairs of HH: the turns put together are the transcript, white space aside."""
    rows = read_rows(shared_data / "hh_harmless.jsonl.gz")
    pairs = {pair.origin: pair for pair in preferences(rows)}
    found, empty = [], []
    for row, told in zip(rows, read_transcripts(rows), strict=True):
        for side in ("chosen", "rejected"):
            text = "".join(message["content"] for message in told.values[side])
            plain = re.sub("\n\n(Human|Assistant):", "", row.values[side])
            assert re.sub(r"\s+", "", text) == re.sub(r"\s+", "", plain)
        try:
            found += chat_preferences([told])
        except DataError as error:
            empty.append(str(error))
    assert len(found) + len(empty) == len(pairs) == 1800
    assert len(empty) == 3
    assert all("expected an answer that is not empty" in error for error in empty)
    same = 0
    for pair in found:
        text = pairs[pair.origin]
        sides = text.chosen.strip(), text.rejected.strip()
        same += (pair.chosen[0]["content"], pair.rejected[0]["content"]) == sides
        assert pair.prompt[-1]["role"] == "user"
    assert same >= 1790  # the others have several turns of the assistant in a row
