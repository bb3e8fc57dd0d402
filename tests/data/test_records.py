"""Rows to records: real data round-trips, and every fault names file, line, column."""

import re

import pytest

from rlhf_jax.data import (
    DataError,
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
    demonstrations,
    labels,
    preferences,
    prompts,
    rankings,
    read_rows,
)
from rlhf_jax.data.records import ASSISTANT


def error(parse, row) -> str:
    with pytest.raises(DataError) as caught:
        parse([row])
    message = str(caught.value)
    assert message.startswith("rows.jsonl:7: ") and "\n" not in message
    return message


def test_every_hh_row_splits_and_round_trips(shared_data):
    rows = read_rows(shared_data / "hh_harmless.jsonl.gz")
    pairs = preferences(rows)
    assert len(pairs) == len(rows) == 1800
    for row, pair in zip(rows, pairs, strict=True):
        assert pair.prompt + pair.chosen == row.values["chosen"]
        assert pair.prompt + pair.rejected == row.values["rejected"]
        assert pair.prompt.endswith(ASSISTANT)
        assert pair.chosen != pair.rejected
        # The last turn in common: the answers have no further one in common.
        assert not (ASSISTANT in pair.chosen and pair.rejected.startswith(pair.chosen))


def test_every_sst_row_has_its_label(shared_data):
    train = labels(read_rows(shared_data / "sst_train.jsonl.gz"))
    dev = labels(read_rows(shared_data / "sst_dev.jsonl.gz"))
    assert (len(train), len(dev)) == (6920, 872)
    assert {example.label for example in train} == {0, 1}
    assert dev[0] == Labeled("", "One long string of cliches.", 0)


def test_demonstrations(row):
    assert demonstrations([row(text="a b"), row(prompt="", completion="c", id=1)]) == [
        Demonstration("", "a b"),
        Demonstration("", "c"),
    ]
    assert demonstrations([row(text="a")])[0].origin == "rows.jsonl:7"


@pytest.mark.parametrize(
    "words, prompt",
    [(1, "  It's"), (2, "  It's a\n"), (3, "  It's a\n\nfilm."), (9, None)],
)
def test_first_words_are_the_beginning_of_the_text(words, prompt, row):
    text = "  It's a\n\nfilm."
    [found] = prompts([row(text=text)], prompt_words=words)
    assert text.startswith(found.prompt)
    assert found.prompt.split() == text.split()[:words]
    assert found.prompt == (text if prompt is None else prompt.rstrip("\n"))


def test_prompts(row):
    assert prompts([row(prompt="a b", text="c d")]) == [Prompt("a b")]
    with pytest.raises(ValueError, match="prompt_words is 0; expected"):
        prompts([], prompt_words=0)
    assert "'text': expected at least one word" in error(
        lambda rows: prompts(rows, prompt_words=1), row(text=" \n")
    )


def test_preferences(row):
    full = row(prompt="p", chosen="a", rejected="b", annotator=3, margin=1, weight=0.5)
    assert preferences([full]) == [Preference("p", "a", "b", 3, 1.0, 0.5)]
    [pair] = preferences([row(prompt="p", chosen="a", rejected="b")])
    assert (pair.annotator, pair.margin, pair.weight) == (-1, 0.0, 1.0)
    # CSV knows text only.
    text = row(prompt="p", chosen="a", rejected="b", annotator="3", margin="-1.5")
    assert preferences([text]) == [Preference("p", "a", "b", 3, -1.5)]


@pytest.mark.fault(23)
def test_transcripts_split_after_the_last_common_turn(row):
    first = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    [pair] = preferences([row(chosen=first + " d", rejected=first + " dd")])
    assert pair == Preference(first, " d", " dd")
    # A turn that only one side has belongs to its answer.
    longer = first + " d\n\nHuman: e\n\nAssistant: f"
    [pair] = preferences([row(chosen=first + " d", rejected=longer)])
    assert (pair.prompt, pair.prompt + pair.rejected) == (first, longer)


def test_rankings(row):
    full = row(prompt="", completions=["a", "b", "c"], ranks=[0, 2, 0], annotator=1)
    assert rankings([full]) == [Ranking("", ("a", "b", "c"), (0, 2, 0), 1)]


def test_labels(row):
    assert labels(
        [row(text="a", label=1), row(prompt="p", completion="c", label="0")]
    ) == [
        Labeled("", "a", 1),
        Labeled("p", "c", 0),
    ]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RANKED = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}
NO_TURN = {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}
NO_ANSWER = {"chosen": "x\n\nAssistant:", "rejected": "x\n\nAssistant: b"}
NO_TEXT = "no column 'text' (nor prompt and completion); the columns are"
BAD_TEXT = "'text': expected text that is not empty, found"
BAD_RANKS = "'ranks': expected 2 integers, one a completion, the best 0, found"
FAULTS = [
    (demonstrations, {}, f"{NO_TEXT} none"),
    (demonstrations, {"body": 1, "id": 2}, f"{NO_TEXT} body, id"),
    (demonstrations, {"prompt": "p"}, "no column 'completion'; the columns are prompt"),
    (demonstrations, {"completion": "a"}, "no column 'prompt'"),
    (demonstrations, {"text": "t", "prompt": "p"}, "'text': expected either text, or"),
    (demonstrations, {"text": None}, f"{BAD_TEXT} null"),
    (demonstrations, {"text": 3}, f"{BAD_TEXT} 3"),
    (demonstrations, {"text": ["a"]}, f"{BAD_TEXT} ['a']"),
    (demonstrations, {"text": ""}, f"{BAD_TEXT} ''"),
    (demonstrations, {"prompt": None, "completion": "a"}, "'prompt': expected"),
    (demonstrations, {"prompt": "p", "completion": ""}, "'completion': expected"),
    (demonstrations, {"text": "a\ud800"}, "found '\\ud800' at character 2"),
    (prompts, {"text": "t"}, "no column 'prompt'; the columns are text"),
    (prompts, {"prompt": ""}, "'prompt': expected"),
    (preferences, {"chosen": "a"}, "no column 'rejected'"),
    (preferences, PAIR | {"prompt": None}, "'prompt': expected"),
    (preferences, PAIR | {"chosen": 1}, "'chosen': expected text that is not empty"),
    (preferences, PAIR | {"rejected": ""}, "'rejected': expected"),
    (preferences, PAIR | {"rejected": "a"}, "'rejected': expected another answer than"),
    (preferences, PAIR | {"annotator": 1.5}, "'annotator': expected an integer ≥ -1"),
    (preferences, PAIR | {"annotator": True}, "'annotator': expected"),
    (preferences, PAIR | {"annotator": "ann"}, "'annotator': expected"),
    (preferences, PAIR | {"annotator": 2**31}, "'annotator': expected"),
    (preferences, PAIR | {"margin": None}, "'margin': expected a finite number, found"),
    (preferences, PAIR | {"margin": "inf"}, "'margin': expected a finite number"),
    (preferences, PAIR | {"margin": True}, "'margin': expected a finite number"),
    (preferences, PAIR | {"weight": -1}, "expected a finite number ≥ 0, found -1"),
    (preferences, NO_TURN, "have no '\\n\\nAssistant:' in common"),
    (preferences, NO_ANSWER, "'chosen': expected an answer after the last"),
    (rankings, {"prompt": "p"}, "no column 'completions'"),
    (rankings, RANKED | {"completions": "ab"}, "expected a list of at least two texts"),
    (rankings, RANKED | {"completions": ["a"]}, "expected a list of at least two"),
    (rankings, RANKED | {"completions": ["a", None]}, "'completions': expected text"),
    (rankings, RANKED | {"ranks": [0]}, f"{BAD_RANKS} [0]"),
    (rankings, RANKED | {"ranks": [1, 2]}, f"{BAD_RANKS} [1, 2]"),
    (rankings, RANKED | {"ranks": [0, 1.0]}, f"{BAD_RANKS} [0, 1.0]"),
    (rankings, RANKED | {"ranks": None}, f"{BAD_RANKS} null"),
    (rankings, RANKED | {"completions": ["a", "a"]}, "'ranks': expected equal ranks"),
    (labels, {"text": "a"}, "no column 'label'; the columns are text"),
    (labels, {"text": "a", "label": 2}, "'label': expected 0 or 1, found 2"),
    (labels, {"text": "a", "label": -1}, "'label': expected 0 or 1, found -1"),
    (labels, {"text": "a", "label": 0.5}, "'label': expected 0 or 1, found 0.5"),
    (labels, {"text": "a", "label": "good"}, "'label': expected 0 or 1, found 'good'"),
    (labels, {"text": "a", "label": None}, "'label': expected 0 or 1, found null"),
]


@pytest.mark.fault(22)
@pytest.mark.parametrize("parse, values, reason", FAULTS)
def test_faults_name_row_column_and_remedy(parse, values, reason, row):
    message = error(parse, row(**values))
    assert reason in message
    assert re.search("correct or remove the row|rename one|add a column", message)


def test_long_values_are_shortened_in_messages(row):
    message = error(demonstrations, row(text=["x" * 10_000]))
    assert len(message) < 300 and "… (list)" in message


def test_the_first_bad_row_stops(row):
    good = row(text="a", label=0)
    with pytest.raises(DataError, match="found 5"):
        labels([good, row(text="a", label=5), row(text="a", label=6)])
