"""read_rows: every format reads the same rows; every fault is one line that helps."""

import gzip
import re
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from rlhf_jax.data import (
    DataError,
    Fault,
    Row,
    read_rows,
    rename_columns,
    scan_rows,
)

ROWS = [
    {"prompt": "2 + 2 =", "completion": " 4, I think"},
    {"prompt": 'say "é"\n', "completion": ' "é"\u2028'},
]
JSONL = (
    '{"prompt": "2 + 2 =", "completion": " 4, I think"}\n'
    '{"prompt": "say \\"é\\"\\n", "completion": " \\"é\\"\u2028"}\n'
)
CSV = (
    "prompt,completion\n"
    '2 + 2 =," 4, I think"\n'
    '"say ""é""\n"," ""é""\u2028"\n'  # a field over two lines
)


def error(path: Path | str, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_format_holds_the_same_rows(kind, zipped, make_file, tmp_path):
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "table")
        content = (tmp_path / "table").read_bytes()
    else:
        content = {"jsonl": JSONL, "csv": CSV}[kind].encode()
    if zipped:
        path = make_file(f"rows.{kind}.gz", gzip.compress(content))
    else:
        path = make_file(f"rows.{kind}", content)
    rows = read_rows(path)
    assert [row.values for row in rows] == ROWS
    # The header is line 1 of a CSV file.
    assert [row.line for row in rows] == ([2, 3] if kind == "csv" else [1, 2])
    assert {row.source for row in rows} == {str(path)}


def test_lines_are_counted_as_an_editor_does(make_file):
    path = make_file("rows.jsonl", '\ufeff{"a": 1}\r\n\r\n{"a": 2}')
    assert [(r.line, r.values) for r in read_rows(path)] == [
        (1, {"a": 1}),
        (3, {"a": 2}),
    ]
    path = make_file("rows.csv", '\ufeffa,b\r\n1,"x\r\ny"\r\n\r\n2,z\r\n')
    assert [(r.line, r.values["b"]) for r in read_rows(path)] == [
        (2, "x\r\ny"),
        (5, "z"),
    ]


def test_real_files(shared_data):
    assert len(read_rows(shared_data / "sst_train.jsonl.gz")) == 6920
    assert len(read_rows(shared_data / "sst_dev.jsonl.gz")) == 872
    assert len(read_rows(shared_data / "gsm8k_train.jsonl.gz")) == 7473


def test_missing_file_names_its_neighbours(make_file):
    path = make_file("reviews.jsonl", "{}")
    message = error(path.with_name("review.jsonl"))
    assert "review.jsonl: no such file; did you mean reviews.jsonl?" in message
    assert "no such file; check the path" in error(path.with_name("zzz.csv"))
    assert "nor is there a folder" in error(path.parent / "nowhere" / "rows.csv")


def test_folder_is_not_a_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert re.search(
        r"folder\.csv: cannot be read: Is a dir", error(tmp_path / "folder.csv")
    )


@pytest.mark.parametrize("name", ["rows.js", "rows.txt.gz", "rows", "rows.gz"])
def test_unknown_extension_names_the_known_ones(name, make_file):
    message = error(make_file(name, "{}"))
    assert name in message and "unknown extension" in message
    assert ".jsonl, .json, .csv or .parquet" in message


@pytest.mark.parametrize(
    "damage",
    [lambda z: z[:-9], lambda z: b"{}", lambda z: z[:12] + b"\xff" * 9 + z[21:]],
)
def test_unreadable_gzip(damage, make_file):
    path = make_file("rows.jsonl.gz", damage(gzip.compress(JSONL.encode())))
    message = error(path)
    assert "rows.jsonl.gz: not a whole gzip file" in message
    assert "download it again" in message


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"a": 1', "Expecting ',' delimiter, at character 8"),
        ("{'a': 1}", "double quotes, at character 2"),
        ('{"a": NaN}', "NaN is not a number that JSON knows"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_bad_json_names_line_and_reason(line, reason, make_file):
    message = error(make_file("rows.jsonl", '{"a": 1}\n' + line + "\n"))
    assert "rows.jsonl:2: not JSON" in message and reason in message
    assert '{"prompt": "…"}' in message


@pytest.mark.parametrize(
    "line, kind", [("[1]", "list"), ('"a"', "str"), ("null", "None")]
)
def test_json_that_is_no_object(line, kind, make_file):
    message = error(make_file("rows.jsonl", line))
    assert f"rows.jsonl:1: expected a JSON object, found {kind}" in message


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_not_utf8_names_line_and_byte(name, make_file):
    content = {"rows.jsonl": '{"a": "b"}\n{"a": "é"}', "rows.csv": "a,b\n1,....2é"}[
        name
    ]
    message = error(make_file(name, content.encode("latin-1")))
    assert f"{name}:2: not UTF-8 (byte 0xe9 at byte 8 of the line)" in message
    assert "save the file as UTF-8" in message


@pytest.mark.parametrize(
    "name, content",
    [
        ("rows.jsonl", ""),
        ("rows.jsonl", "\n \n"),
        ("rows.csv", ""),
        ("rows.csv", "a,b\n"),
    ],
)
def test_empty_file(name, content, make_file):
    assert re.search(
        rf"{name}: .*(is empty|no rows); expected at", error(make_file(name, content))
    )


@pytest.mark.parametrize(
    "content, line, reason",
    [
        ("a,b\n1,2\n3\n", 3, "1 fields, but the header names 2 columns (a, b)"),
        ("a,b\n1,2,3\n", 2, "3 fields"),
        ('a,b\n1,"2"x\n', 2, "not CSV"),
        ('a,b\n1,"2\n', 2, "not CSV"),
        ("a,a\n1,2\n", 1, "a header of distinct column names"),
        ("a,\n1,2\n", 1, "a header of distinct column names"),
    ],
)
def test_bad_csv(content, line, reason, make_file):
    message = error(make_file("rows.csv", content))
    assert f"rows.csv:{line}: " in message and reason in message


def test_bad_parquet(make_file):
    message = error(make_file("rows.parquet", b"PAR1 but not really"))
    assert "rows.parquet: not a whole Parquet file" in message


def test_files_have_no_splits(make_file):
    message = error(make_file("rows.jsonl", JSONL), split="train")
    assert "a file has no splits" in message and "leave split out" in message


def test_renaming(row):
    [renamed] = rename_columns(
        [row(question="a", answer="b", id=3)], {"question": "prompt"}
    )
    assert renamed == Row({"prompt": "a", "answer": "b", "id": 3}, "rows.jsonl", 7)
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: no column 'q' .* are question;"
    ):
        rename_columns([row(question="a")], {"q": "prompt"})
    with pytest.raises(DataError, match="there already is a column 'b'"):
        rename_columns([row(a=1, b=2)], {"a": "b"})
    [swapped] = rename_columns([row(a=1, b=2)], {"a": "b", "b": "a"})
    assert swapped.values == {"b": 1, "a": 2}


class EveryFeature(tfds.core.GeneratorBasedBuilder):
    """A data set with a feature of every kind that rows have."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "text": text,
            "label": tfds.features.ClassLabel(names=["bad", "good"]),
            "completions": tfds.features.Sequence(text),
            "ranks": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "margin": tfds.features.Scalar(np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            yield (
                i,
                {
                    "text": f"é {i}",
                    "label": i,
                    "completions": ["a", "b"],
                    "ranks": [1, 0],
                    "margin": 0.5,
                },
            )


class NotText(EveryFeature):
    """A data set with bytes in place of a text."""

    def _generate_examples(self):
        for i, example in super()._generate_examples():
            yield i, example | {"text": [b"caf\xc3\xa9", b"caf\xe9"][i]}


class Unreachable(EveryFeature):
    """A data set that cannot be downloaded."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host")


def test_tfds_rows_are_plain_python_and_built_offline(tmp_path, monkeypatch):
    def connect(*args):
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    rows = read_rows("tfds:every_feature", split="train", data_dir=tmp_path)
    values = {"label": 1, "completions": ["a", "b"], "ranks": [1, 0], "margin": 0.5}
    assert rows[1] == Row({"text": "é 1", **values}, "tfds:every_feature[train]", 2)
    assert [type(x) for x in rows[1].values["ranks"]] == [int, int]
    # The second time nothing is written.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert read_rows("tfds:every_feature", split="train", data_dir=tmp_path) == rows
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_tfds_text_that_is_not_utf8(tmp_path):
    first, second = scan_rows("tfds:not_text", split="train", data_dir=tmp_path)
    assert isinstance(first, Row) and first.values["text"] == "café"
    assert isinstance(second, Fault) and "xe9" in second.raw
    message = error("tfds:not_text", split="train", data_dir=str(tmp_path))
    assert message.startswith("tfds:not_text[train]:2: not UTF-8 (")


@pytest.mark.parametrize(
    "name, split, reason",
    [
        (
            "tfds:every_feature",
            "tain",
            "Unknown split 'tain'. Should be one of ['train']",
        ),
        ("tfds:no_such_set", "train", "Dataset no_such_set not found; check"),
        ("tfds:tiny_reviews/nope", "train", "BuilderConfig nope not found"),
        ("tfds:unreachable", "train", "no route to host"),
    ],
)
def test_tfds_faults(name, split, reason, tmp_path):
    message = error(name, split=split, data_dir=str(tmp_path))
    assert message.startswith(f"{name}: split {split!r} cannot be read:")
    assert reason in message and "check data set, config and split" in message


def test_tfds_needs_a_split():
    assert "which split? Give split" in error("tfds:every_feature")
