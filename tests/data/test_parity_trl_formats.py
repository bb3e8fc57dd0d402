"""TRL's helpers and ours read the same rows alike, and differ where we say so."""

from typing import Any

import pytest
from data.format_examples import EXAMPLES
from data.malformed import ASK, FIVE, FOUR
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data import FORMATS, Conversation, Labeled, Preference, Row
from rlhf_jax.data.formats.trl import is_chat

trl = pytest.importorskip("trl.data_utils")

TRL_TYPES = (
    "prompt language_modeling prompt_completion preference implicit_preference unpaired"
).split()
ROWS = [
    (format, values, records)
    for format, values, records in EXAMPLES
    if format in (*TRL_TYPES, "ultrafeedback_binarized")
]
MORE = [{"role": "user", "content": "And 3?"}]
NINE = [{"role": "assistant", "content": "9"}]


def read(format: str, values: dict[str, Any]) -> list[Any]:
    return FORMATS[format](Row(values, "rows.jsonl", 1))


def sides(pair: Preference[Any]) -> dict[str, Any]:
    """A preference as TRL's columns."""
    values = {name: getattr(pair, name) for name in ("prompt", "chosen", "rejected")}
    return {k: v if isinstance(v, str) else list(v) for k, v in values.items()}


@pytest.mark.parametrize("format, values, records", ROWS)
def test_conversational_is_the_same(format, values, records):
    columns = {k: v for k, v in values.items() if k != "prompt" or len(values) == 1}
    ours = is_chat(Row(columns, "", 1), *columns)
    assert trl.is_conversational(columns) == ours
    assert any(isinstance(r, Conversation) or _lists(r) for r in records) == ours


def _lists(record: Any) -> bool:
    return any(isinstance(v, tuple) and v for v in vars(record).values())


@pytest.mark.parametrize("format, values, records", ROWS)
def test_a_prompt_is_extracted_where_and_as_trl_does(format, values, records):
    if "chosen" not in values:
        assert trl.maybe_extract_prompt(values) == values
        return
    theirs = trl.maybe_extract_prompt(values)
    if values["chosen"] == "The sky is blue.":  # and black: TRL cuts after "bl"
        assert theirs["prompt"] == "The sky is bl"
        theirs = trl.extract_prompt(values | {"rejected": "The sky is green."})
        [pair] = read(format, values | {"rejected": "The sky is green."})
    else:
        [pair] = records
    assert sides(pair) == {k: theirs[k] for k in ("prompt", "chosen", "rejected")}


WORDS = st.lists(st.sampled_from(["a", "bc", "bd", "e"]), min_size=1, max_size=4)


@settings(deadline=None)
@given(WORDS, WORDS, WORDS)
def test_words_that_differ_at_once_are_split_alike(common, chosen, rejected):
    # After a blank, where the first letters differ: both cut before the blank.
    whole = [" ".join([*common, *side]) for side in (["x", *chosen], ["y", *rejected])]
    values: dict[str, Any] = dict(zip(("chosen", "rejected"), whole, strict=True))
    [pair] = read("implicit_preference", values)
    assert sides(pair) == trl.extract_prompt(values)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_words_that_are_no_others_have_no_prompt(chosen, rejected):
    values = {"chosen": "".join(chosen), "rejected": "".join(rejected)}
    if values["chosen"] == values["rejected"]:
        return
    [pair] = read("implicit_preference", values)
    assert pair.prompt == ""  # one word each
    assert (pair.chosen, pair.rejected) == tuple(values.values())


@pytest.mark.parametrize(
    "chosen, rejected, prompt, ours",
    [
        # One goes on where the other ends: TRL leaves the last character, or message.
        ("2 + 2 = 4", "2 + 2 = 4 ?", "2 + 2 = ", "2 + 2 ="),
        (ASK + FOUR, ASK + FOUR + MORE + NINE, ASK, ASK),
        # They differ from the first character on; TRL then looks at the last one.
        ("yes ", "no ", "yes", ""),
        # They differ in a turn of the user, which TRL then calls the answer.
        (ASK + FOUR + MORE + FIVE, ASK + FOUR + ASK + FIVE, ASK + FOUR, ASK),
    ],
)
def test_where_we_differ(chosen, rejected, prompt, ours):
    values = {"chosen": chosen, "rejected": rejected}
    assert trl.extract_prompt(values)["prompt"] == prompt
    [pair] = read("implicit_preference", values)
    assert sides(pair)["prompt"] == ours
    for side in ("chosen", "rejected"):
        assert sides(pair)["prompt"] + sides(pair)[side] == values[side]


def test_transcripts_are_cut_at_a_turn_where_trl_cuts_in_a_word():
    first = "\n\nHuman: Hi\n\nAssistant:"
    values = {"chosen": first + " Hello!", "rejected": first + " Help!"}
    assert trl.extract_prompt(values)["prompt"] == first + " Hel"
    assert read("hh", values)[0].prompt == first


def test_unpairing_gives_the_rows_that_we_read_as_labels():
    datasets = pytest.importorskip("datasets")
    rows = [
        v for f, v, _ in EXAMPLES if f == "preference" and isinstance(v["prompt"], str)
    ]
    columns = ("prompt", "chosen", "rejected")
    table = {name: [row[name] for row in rows] for name in columns}
    unpaired = trl.unpair_preference_dataset(datasets.Dataset.from_dict(table))
    found = [label for row in unpaired for label in read("unpaired", row)]
    pairs = [pair for row in rows for pair in read("preference", row)]
    assert found == [Labeled(p.prompt, p.chosen, 1) for p in pairs] + [
        Labeled(p.prompt, p.rejected, 0) for p in pairs
    ]
