"""``python -m rlhf_jax.data``: what it prints, writes and returns."""

import json
import re

import pytest
from data.malformed import GOOD, KINDS, PAIR, content

from rlhf_jax.data import read_records, read_rows, save_tokenizer
from rlhf_jax.data.__main__ import main


def table(out: str, title: str) -> list[list[str]]:
    """The rows of a printed table as cells."""
    lines = out.split(f" {title} ")[-1].splitlines() if title else out.splitlines()
    start = next(i for i, line in enumerate(lines) if "──" in line)
    rows = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        rows.append(re.split(r"\s{2,}", line.strip()))
    return rows


def test_hh_in_numbers(shared_data, capsys):
    path = shared_data / "hh_harmless.jsonl.gz"
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert ["hh", "1,800", "1,800", "0", "1,800"] in table(out, "")
    assert "Length in words" in out and "Quarantined" not in out
    [share] = re.findall(r"longer answer is preferred +(.*)", out)
    assert share.startswith("0.433 (95 % interval 0.410 – 0.456) of 1,764; 36 pairs")
    assert re.search(r"prompts that come again +1 ", out)
    assert re.search(r"pairs judged both ways +0 ", out)


@pytest.fixture
def malformed(make_file):
    return make_file("malformed.jsonl", content())


def test_what_was_put_aside_is_shown_with_its_reason(malformed, capsys):
    assert main(["check", str(malformed)]) == 0
    out = capsys.readouterr().out
    read = read_records(malformed)
    num = len(KINDS)
    counts = [f"{read.num_rows}", f"{read.num_rows - num}", f"{num}"]
    assert re.search(r"preference +" + " +".join(counts), out)
    line = 1 + len(GOOD) + [*KINDS].index("a key twice") + 1
    assert f"line {line}: {KINDS['a key twice'][0]}" in out
    for shown in ("the key 'prompt' comes", "not UTF-8", "'weight': expected a finite"):
        assert shown in out
    assert re.search(r"^ +3 +column 'chosen': expected text that is not", out, re.M)
    assert "records that come again" in out


def test_both_kinds_of_rows_are_written(malformed, tmp_path, capsys):
    out, aside = tmp_path / "good.jsonl", tmp_path / "aside.jsonl"
    options = ["--out", str(out), "--quarantine", str(aside)]
    assert main(["check", str(malformed), *options]) == 0
    read = read_records(malformed)
    assert read_records(out).records == read.records
    origins = [row.values["origin"] for row in read_rows(aside)]
    assert origins == [fault.origin for fault in read.quarantined]


def test_nothing_usable_is_status_1(make_file, capsys):
    path = make_file("rows.jsonl", json.dumps(PAIR | {"chosen": ""}))
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "'chosen': expected text that is not empty" in re.sub(r"\s+", " ", out)
    assert "Length" not in out
    assert main(["check", str(path.with_name("nowhere.jsonl"))]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no such file" in error
    assert error.count("\n") == 1


def test_format_and_columns_can_be_named(make_file, capsys):
    path = make_file("rows.csv", "q,a\n2 =,2\n3 =,3\n")
    renamed = ["--columns", "q", "prompt", "a", "completion"]
    assert main(["check", str(path), *renamed]) == 0
    assert re.search(r"prompt_completion +2 +2 +0 +2", capsys.readouterr().out)
    assert main(["check", str(path), *renamed, "--format", "prompt"]) == 0
    assert re.search(r" prompt +2 +2 +0 +2", capsys.readouterr().out)
    assert main(["check", str(path), "--format", "alpaca"]) == 1
    assert "expected one of prompt, language_modeling" in capsys.readouterr().err


def test_tokens_are_counted_with_a_tokenizer(
    make_file, tmp_path, byte_tokenizer, capsys
):
    save_tokenizer(byte_tokenizer, tmp_path / "bytes")
    path = make_file("rows.jsonl", json.dumps(PAIR))
    assert main(["check", str(path), "--tokenizer", str(tmp_path / "bytes")]) == 0
    out = capsys.readouterr().out
    assert "Length in tokens" in out
    assert re.search(r"prompt +1" + " +7" * 7, out)  # "2 + 2 =" is seven bytes
    assert re.search(r"row +1" + " +9" * 7, out)  # and " 4" two more


def test_text_upsets_no_terminal(make_file, capsys):
    row = PAIR | {"rejected": "", "chosen": "\x1b[31m[bold]red"}
    main(["check", str(make_file("rows.jsonl", json.dumps(row)))])
    assert "\x1b" not in capsys.readouterr().out
