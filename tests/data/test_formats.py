"""Each known format by examples, written and read again."""

import json

import pytest
from data.format_examples import EXAMPLES
from data.malformed import ASK, FIVE, FOUR

from rlhf_jax.data import (
    FORMATS,
    DataError,
    detect_format,
    read_records,
    record_values,
    write_records,
)
from rlhf_jax.data.columns import annotator_number


@pytest.mark.parametrize("format, values, records", EXAMPLES)
def test_rows_become_records(format, values, records, row):
    assert detect_format(row(**values)) == format
    found = FORMATS[format](row(**values))
    assert found == records
    assert {record.origin for record in found} == {"rows.jsonl:7"}


def test_every_format_has_an_example():
    assert {name for name, _, _ in EXAMPLES} == {*FORMATS}


@pytest.mark.parametrize("format, values, records", EXAMPLES)
def test_what_is_written_is_read_again(format, values, records, make_file, tmp_path):
    path = make_file("rows.jsonl", json.dumps(values))
    read = read_records(path)
    assert (read.format, read.records) == (format, records)
    write_records(read.records, tmp_path / "good.jsonl")
    assert read_records(tmp_path / "good.jsonl").records == records
    assert record_values(read.records[0])["origin"] == f"{path}:1"


@pytest.mark.fault(23)
def test_both_kinds_of_rows_in_one_file(make_file):
    rows = [
        {"prompt": "2 =", "chosen": " 2", "rejected": " 3"},
        {"prompt": ASK, "chosen": FOUR, "rejected": FIVE},
    ]
    path = make_file("rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert [type(r.prompt) for r in read_records(path).records] == [str, tuple]


@pytest.mark.fault(30)
def test_annotators_by_name_are_told_apart():
    names = [f"worker {i}" for i in range(1000)]
    numbers = [annotator_number(name) for name in names]
    assert len({*numbers}) == 1000 and all(0 <= n < 2**31 for n in numbers)
    assert numbers == [annotator_number(name) for name in names]


def test_unknown_columns_name_the_formats(row):
    with pytest.raises(
        DataError, match="'question, answer' are of no known format.*hh"
    ):
        detect_format(row(question="2?", answer="2"))
