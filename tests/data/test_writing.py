"""Rows that are written are whole, or what was there before."""

from pathlib import Path

import pytest

from rlhf_jax.data import DataError, read_rows, write_rows


def test_rows_are_read_again(tmp_path):
    rows = [{"prompt": "naïve", "completion": "4\ud83d"}, {"n": [1, 0.5, None]}]
    write_rows(iter(rows), tmp_path / "rows.jsonl")
    assert [row.values for row in read_rows(tmp_path / "rows.jsonl")] == rows
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert "naïve" in text and "\\ud83d" in text


def test_what_json_does_not_know(tmp_path):
    with pytest.raises(TypeError, match="PosixPath is not JSON serializable"):
        write_rows([{"a": Path("b")}], tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())
    write_rows([{"a": Path("b")}], tmp_path / "rows.jsonl", default=str)
    assert read_rows(tmp_path / "rows.jsonl")[0].values == {"a": "b"}


def test_what_was_there_stays_until_all_is_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows([{"n": 0}], path)

    def rows():
        yield {"n": 1}
        assert [row.values for row in read_rows(path)] == [{"n": 0}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(rows(), path)
    assert [row.values for row in read_rows(path)] == [{"n": 0}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["nowhere/rows.jsonl", "file/rows.jsonl", "folder"])
def test_what_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"{where}: cannot be written") as error:
        write_rows([], tmp_path / where)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
