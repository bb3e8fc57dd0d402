"""Users' own files as data sets of TensorFlow Datasets, really built."""

import gzip
import json
import socket

import pytest
from data.format_examples import HEAD, POST, SUMMARIES, rated

from rlhf_jax.data import DataError, preferences, rankings, read_rows
from rlhf_jax.data.__main__ import main
from rlhf_jax.data.builders import build_dataset


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def connect(*args):
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr(socket.socket, "connect", connect)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def test_hh_from_its_own_folders(shared_data, tmp_path, capsys):
    source = shared_data / "hh_harmless.jsonl.gz"
    lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)
    folder = tmp_path / "hh-rlhf" / "harmless-base"
    folder.mkdir(parents=True)
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:40])))
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[40:50])))
    command = ["build", "hh", str(tmp_path / "hh-rlhf"), "--data-dir", str(tmp_path)]
    assert main(command) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "test 10" in out and "train 40" in out and "quarantined 0" in out

    rows = read_rows("tfds:local_feedback/hh", split="train", data_dir=tmp_path)
    assert rows[2].values["origin"] == "harmless-base/train.jsonl.gz:3"
    for pair, row in zip(preferences(rows), read_rows(source)[:40], strict=True):
        assert pair.prompt + pair.chosen == row.values["chosen"]
        assert pair.prompt + pair.rejected == row.values["rejected"]
    few = read_rows("tfds:local_feedback/hh", split="test[:30%]", data_dir=tmp_path)
    assert len(few) == 3
    assert {p.suffix for p in (tmp_path / "local_feedback").rglob("*-0*")} == {
        ".array_record-00000-of-00001"
    }
    # A second time it is not overwritten.
    assert main(command) == 1
    assert "is there already; remove it to rebuild" in capsys.readouterr().err


def test_comparisons_name_their_splits(tmp_path):
    row = {"info": POST, "summaries": SUMMARIES, "choice": 1, "worker": "5f3c"}
    rows = [row | {"split": split} for split in ("train", "valid1", "train")]
    write(tmp_path / "comparisons" / "batch3.json", rows)  # one object a line
    found = build_dataset(
        "summarize_from_feedback", tmp_path / "comparisons", data_dir=tmp_path
    )
    assert found == {"train": 2, "valid1": 1, "quarantined": 0}
    name = "tfds:local_feedback/summarize_from_feedback"
    [row] = read_rows(name, split="valid1", data_dir=tmp_path)
    [pair] = preferences([row])
    assert (pair.prompt, pair.chosen, pair.rejected) == (HEAD, " Found.", " Lost.")
    assert pair.annotator > 0 and row.values["origin"] == "batch3.json:2"


def test_rankings_of_any_length_with_ties(tmp_path):
    scored = lambda *scores: {
        "instruction": "2 + 2?",
        "completions": [rated(str(n), overall_score=n // 2) for n in scores],
    }
    write(tmp_path / "in" / "flan.jsonl", [scored(4, 5, 6), scored(1, 2)] * 60)
    write(tmp_path / "in" / "val-0.jsonl", [scored(8)] + [scored(8, 6)] * 3)
    found = build_dataset("ultrafeedback", tmp_path / "in", data_dir=tmp_path)
    assert found == {"train": 120, "validation": 3, "quarantined": 1}
    name = "tfds:local_feedback/ultrafeedback"
    first, second = rankings(read_rows(name, split="train[:2]", data_dir=tmp_path))
    assert (first.completions, first.ranks) == (("4", "5", "6"), (1, 1, 0))
    assert (second.completions, second.ranks) == (("1", "2"), (1, 0))
    stored = tmp_path / "local_feedback" / "ultrafeedback" / "1.0.0" / "metadata.json"
    [[origin, reason]] = json.loads(stored.read_text())["quarantined"]
    assert origin.endswith("val-0.jsonl:1") and "at least two completions" in reason


def test_what_cannot_be_built(tmp_path):
    def refused(config, folder):
        with pytest.raises(DataError) as caught:
            build_dataset(config, folder, data_dir=tmp_path / "out")
        return str(caught.value)

    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a"}
    write(tmp_path / "hh" / "train.jsonl", [pair])
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes" / "readme.md", [])
    assert "no config 'hh_rlhf'; expected hh or" in refused("hh_rlhf", tmp_path / "hh")
    assert "no folder with files in it" in refused("hh", tmp_path / "empty")
    assert "no folder with files in it" in refused("hh", tmp_path / "nowhere")
    assert "no data file in it; expected files of .jsonl" in refused(
        "hh", tmp_path / "notes"
    )
    message = refused("hh", tmp_path / "hh")
    assert "1 of 1 rows are faulty, more than 1%; the first is" in message
    assert "have no '\\n\\nAssistant:' in common" in message
    # Nothing is left behind that a later build or reader would take for whole.
    with pytest.raises(DataError, match="cannot be read: Manual directory .*not exist"):
        read_rows("tfds:local_feedback/hh", split="train", data_dir=tmp_path / "out")


def test_files_in_the_usual_place_are_built_when_they_are_read(tmp_path):
    head = "\n\nHuman: a\n\nAssistant:"
    pair = {"chosen": head + " b", "rejected": head + " c"}
    write(tmp_path / "downloads" / "manual" / "test.jsonl", [pair])
    [row] = read_rows("tfds:local_feedback/hh", split="test", data_dir=tmp_path)
    assert (row.values["prompt"], row.values["chosen"]) == (head, " b")
