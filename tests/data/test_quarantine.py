"""read_records: every row is used or put aside, with a reason that helps."""

import gzip
import json

import pytest
from data.malformed import ASK, CHAT, FIVE, FOUR, GOOD, KINDS, PAIR, content
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data import (
    FORMATS,
    DataError,
    Fault,
    Preference,
    Row,
    preferences,
    read_records,
    read_rows,
    write_quarantined,
    write_records,
)
from rlhf_jax.data.quarantine import adapt
from rlhf_jax.data.splitting import ASSISTANT


def test_every_hh_row_is_used_and_round_trips(shared_data):
    path = shared_data / "hh_harmless.jsonl.gz"
    read = read_records(path)
    assert (read.format, read.num_rows, read.quarantined) == ("hh", 1800, [])
    assert len(read.records) == 1800
    for row, pair in zip(read_rows(path), read.records, strict=True):
        assert isinstance(pair, Preference)
        assert pair.prompt + pair.chosen == row.values["chosen"]
        assert pair.prompt + pair.rejected == row.values["rejected"]
        assert pair.prompt.endswith(ASSISTANT) and pair.origin == row.origin


@pytest.fixture
def malformed(make_file):
    return make_file("malformed.jsonl", content())


@pytest.mark.fault(22)
def test_used_and_quarantined_are_all_that_was_read(malformed):
    read = read_records(malformed)
    num_good = len(GOOD) + len(KINDS) // 10
    assert len(KINDS) >= 40 and read.format == "preference"
    assert read.num_rows == num_good + len(KINDS)
    assert len(read.records) == num_good
    assert len(read.quarantined) == len(KINDS)
    assert read.num_rows == len(read.records) + len(read.quarantined)
    origins = [fault.origin for fault in read.quarantined]
    origins += [record.origin for record in read.records]
    wanted = {f"{malformed}:{line}" for line in range(1, read.num_rows + 1)}
    assert len(origins) == len(wanted) and {*origins} == wanted


@pytest.mark.fault(22)
def test_every_kind_has_a_reason_of_its_own(malformed):
    faults = read_records(malformed).quarantined
    reasons = {}
    for (kind, (_, wanted)), fault in zip(KINDS.items(), faults, strict=True):
        assert wanted in fault.reason, kind
        assert "\n" not in fault.reason and len(fault.reason) < 400, kind
        assert not fault.reason.startswith(str(malformed)), kind
        reasons[fault.reason] = kind
    assert len(reasons) == len(KINDS)


def test_a_gzipped_file_reads_alike(malformed, make_file):
    zipped = make_file("malformed.jsonl.gz", gzip.compress(content()))
    plain, packed = read_records(malformed), read_records(zipped)
    assert packed.records == plain.records
    assert [f.reason for f in packed.quarantined] == [
        f.reason for f in plain.quarantined
    ]


def test_strict_reading_stops_at_the_first(malformed):
    [first, *_] = read_records(malformed).quarantined
    with pytest.raises(DataError) as caught:
        read_rows(malformed)
    assert str(caught.value) == f"{first.origin}: {first.reason}"


def test_both_sides_are_written_and_read_again(malformed, tmp_path):
    read = read_records(malformed)
    good, aside = tmp_path / "good.jsonl", tmp_path / "aside.jsonl"
    write_records(read.records, good)
    write_quarantined(read.quarantined, aside)
    again = read_records(good)
    assert again.records == read.records and again.quarantined == []
    assert [row.values for row in read_rows(aside)] == [
        {"origin": f.origin, "reason": f.reason, "raw": f.raw} for f in read.quarantined
    ]
    # Lines as they stand; rows that JSON could read as JSON that says the same.
    raws = dict(zip(KINDS, (f.raw for f in read.quarantined), strict=True))
    assert raws["single quotes"] == "{'prompt': '2 + 2 ='}"
    assert raws["not UTF-8"] == '{"prompt": "caf\\xe9"}'
    assert json.loads(raws["a lone surrogate"]) == PAIR | {"chosen": "4\ud83d"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_file_that_cannot_be_written_is_left_alone(tmp_path):
    with pytest.raises(DataError, match="cannot be written .No such file"):
        write_records([], tmp_path / "nowhere" / "good.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot be written"):
        write_records([], tmp_path / "folder")


def test_the_plain_rows_are_what_training_scripts_read(make_file, tmp_path):
    path = make_file("pairs.jsonl", "".join(json.dumps(PAIR) + "\n" for _ in range(2)))
    write_records(read_records(path).records, tmp_path / "good.jsonl")
    assert len(preferences(read_rows(tmp_path / "good.jsonl"))) == 2


def test_a_damaged_first_row_does_not_choose_the_format(make_file):
    rows = [{"prompt": "2 + 2 ="}, PAIR, PAIR | {"rejected": " 6"}]
    path = make_file("rows.jsonl", "\n".join(map(json.dumps, rows)))
    read = read_records(path)
    assert (read.format, len(read.records)) == ("preference", 2)
    assert "no column 'chosen'" in read.quarantined[0].reason
    # Named, it is the other way round: the pairs have prompts, too.
    assert len(read_records(path, format="prompt").records) == 3


def test_renaming_quarantines_what_lacks_the_column(make_file):
    path = make_file("rows.jsonl", '{"q": "2 + 2 ="}\n{"a": "4"}\n{"q": "3 + 3 ="}')
    read = read_records(path, columns={"q": "prompt"})
    assert [r.prompt for r in read.records] == ["2 + 2 =", "3 + 3 ="]
    assert "no column 'q' for the renaming" in read.quarantined[0].reason


@pytest.mark.parametrize(
    "text, options, message",
    [
        ('{"body": "a"}', {}, r"rows.jsonl:1: columns 'body' are of no known format"),
        ("{", {}, r"rows.jsonl:1: not JSON"),
        (
            '{"prompt": "a"}',
            {"format": "alpaca"},
            "no format 'alpaca'; expected one of",
        ),
        ("\n", {}, "holds no rows"),
        ('{"prompt": "a"}', {"split": "train"}, "a file has no splits"),
    ],
)
def test_what_is_wrong_with_a_whole_source_raises(text, options, message, make_file):
    with pytest.raises(DataError, match=message):
        read_records(make_file("rows.jsonl", text), **options)


def test_csv_goes_on_after_bad_rows(make_file):
    text = 'prompt,chosen,rejected\na,b,c\nd,e\nf,"g"h,i\nj,\xe9,k\nl,"m\nn",o\np,q,q\n'
    path = make_file("rows.csv", text.encode("latin-1"))
    read = read_records(path)
    assert [(r.prompt, r.origin[-1]) for r in read.records] == [("a", "2"), ("l", "6")]
    found = [(f.origin[-1], f.reason.partition(" (")[0]) for f in read.quarantined]
    assert [line for line, _ in found] == ["3", "4", "5", "8"]
    assert found[0][1].startswith("2 fields, but the header names 3 columns")
    assert [reason for _, reason in found[1:3]] == ["not CSV", "not UTF-8"]
    assert read.quarantined[1].raw == 'f,"g"h,i'


def test_lists_of_json(make_file):
    rows = [PAIR, CHAT | {"id": [1, {"a": "]"}]}]
    for text in (json.dumps(rows), "\ufeff" + json.dumps(rows, indent=2) + "\n"):
        read = read_records(make_file("rows.json", text))
        assert len(read.records) == 2 and not read.quarantined
    lines = [int(record.origin.rpartition(":")[2]) for record in read.records]
    assert lines == [2, 7]
    [bad] = read_records(make_file("rows.json", json.dumps([PAIR, 3]))).quarantined
    assert (bad.raw, bad.reason[:36]) == ("3", "expected a JSON object, found int; r")
    # Also one object a line, whatever the name says.
    assert len(read_records(make_file("rows.json", json.dumps(PAIR))).records) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '[{"prompt": "a"},\n{"prompt": ]',
            "rows.json:2: not JSON .Expecting value.*told",
        ),
        ('[{"prompt": "a"}', r"rows.json:1: not whole: neither , nor \]"),
        ('[{"prompt": "a"} {}', r"rows.json:1: not whole: neither , nor \]"),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', r"more text after the \] that ends"),
        ('[{"prompt": "a",\n "prompt": "b"}]', "rows.json:1: .*comes twice"),
        ("[]", "holds no rows"),
        ("[ ", "rows.json:1: not JSON"),
    ],
)
def test_a_list_that_cannot_be_read_on(text, message, make_file):
    with pytest.raises(DataError, match=message):
        read_records(make_file("rows.json", text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "role content response overall_score annotations Rating text id body "
                "value values rank user_id status selected ranker result prompt post "
                "completed_by response1 response2 completions".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
COLUMNS = (
    "prompt completion chosen rejected label labels completions ranks text messages "
    "annotator info summaries choice worker instruction data annotations annotation_id "
    "fields responses comparison"
).split()


@pytest.mark.fault(22)
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=8))
def test_whatever_a_row_holds_it_is_used_or_put_aside(values):
    for name in FORMATS:
        found = adapt(Row(values, "rows.jsonl", 1), name)
        assert isinstance(found, Fault) or len(found) > 0
        if isinstance(found, Fault):
            assert found.reason and "\n" not in found.reason


NEAR = [
    {"info": ASK[0], "summaries": [FOUR[0], FIVE[0]], "choice": 1},
    {"instruction": "2?", "completions": [{"response": "2"}, {"response": "3"}]},
    {"fields": {"prompt": "2", "response1": "a", "response2": "b"}, "responses": {}},
    {"data": {"prompt": "2", "a": "b"}, "annotations": [{"result": [{"value": {}}]}]},
    {
        "prompt": "2",
        "a": "b",
        "c": "d",
        "x": [{"selected": "left"}],
        "annotation_id": 1,
    },
    {"prompt": "2", "completions": ["a", "b"], "labels": [1, 0], "ranks": [0, 0]},
    CHAT,
]


@pytest.mark.fault(22)
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NEAR), st.data())
def test_one_odd_value_in_a_row_never_breaks_the_reader(values, data):
    def spoil(value):
        if isinstance(value, dict) and value and data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(value)))
            return value | {key: spoil(value[key])}
        if isinstance(value, list) and value and data.draw(st.booleans()):
            return [spoil(value[0]), *value[1:]]
        return data.draw(VALUES)

    spoilt = {k: spoil(v) if data.draw(st.booleans()) else v for k, v in values.items()}
    for name in FORMATS:
        found = adapt(Row(spoilt, "rows.jsonl", 1), name)
        assert found.reason if isinstance(found, Fault) else found  # used or named


def test_a_prompt_s_other_columns_are_written_with_it(tmp_path):
    rows = [{"prompt": "1+1=", "answer": "2", "tags": ["sum", 1], "origin": "x:1"}]
    file, out = tmp_path / "sums.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_records(read_records(file).records, out)
    [again] = read_records(out).records
    assert again.prompt == "1+1="
    assert {"answer": "2", "tags": ["sum", 1]}.items() <= again.columns.items()
