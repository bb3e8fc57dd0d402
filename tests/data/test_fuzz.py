"""Files of good rows and broken ones, as hypothesis makes them: nothing is lost.

Each is read by ``read_records`` and by what the scripts read with. FAULTS_REPEAT=2000
tries as many.
"""

import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from data.malformed import CHAT, LINES, PAIR, ROWS
from faults.repeat import repeats
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from experiments.aside import QUARANTINE
from experiments.judgements import PAIRS, tokenize_pairs
from experiments.reading import DataConfig, Texts, read_data, tokenize_data
from rlhf_jax.data import read_records, read_rows
from rlhf_jax.errors import UserError

pytestmark = pytest.mark.fault(22)

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content.strip() }}\n{% endfor %}"
NUMBERS = (b"1e999", b"-1e999", b"9" * 400, b"9" * 5_000, b"1" + b"0" * 40, b"-0")


def text() -> st.SearchStrategy[str]:
    """Text of all kinds, lone surrogates and NUL among it."""
    return st.text(
        st.characters() | st.sampled_from("\0\ud800\r\n\x85 \ufeff"), max_size=8
    )


def values() -> st.SearchStrategy:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | text()
    deeper = lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(text(), inner, max_size=3)
    )
    return st.recursive(leaves, deeper, max_leaves=6)


def good() -> st.SearchStrategy[dict]:
    """Pairs that can be used: of text, and a few of messages."""
    number = st.integers(0, 9_999)
    pair = number.map(lambda n: PAIR | {"prompt": f"{n} + 0 =", "annotator": n})
    return pair | pair | pair | st.just(CHAT)


def spoilt() -> st.SearchStrategy[dict]:
    """A pair of which one column is anything, or missing, or has another name."""
    column = st.sampled_from(["prompt", "chosen", "rejected", "margin", "messages"])
    changed = st.builds(lambda name, value: PAIR | {name: value}, column, values())
    renamed = text().map(lambda name: {name: 1} | {k: PAIR[k] for k in ("prompt",)})
    same = st.just(PAIR | {"rejected": PAIR["chosen"]})
    long = st.integers(80, 300).map(lambda n: PAIR | {"chosen": "4" * n})
    known = st.sampled_from([row for row, _ in ROWS.values() if len(str(row)) < 1_000])
    return changed | renamed | same | long | known


def line() -> st.SearchStrategy[bytes]:
    """A line of JSONL, whole or not."""
    as_json = lambda row: json.dumps(row).encode()
    deep = st.integers(1, 1_200).map(
        lambda n: b'{"prompt": ' + b"[" * n + b"]" * n + b"}"
    )
    huge = st.sampled_from(NUMBERS).map(
        lambda n: as_json(PAIR)[:-1] + b', "margin": ' + n + b"}"
    )
    twice = st.just(as_json(PAIR)[:-1] + b', "chosen": 1}')
    known = [x if isinstance(x, bytes) else x.encode() for x, _ in LINES.values()]
    broken = st.sampled_from(known) | st.binary(max_size=12).map(
        lambda x: x.replace(b"\n", b" ")
    )
    cut = st.builds(lambda row, n: as_json(row)[:-n], good(), st.integers(1, 30))
    whole = good().map(as_json)
    return st.one_of(
        whole,
        whole,
        whole,
        spoilt().map(as_json),
        deep,
        huge,
        twice,
        broken,
        cut,
        st.sampled_from([b"", b" ", b"\t"]),
    )


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name of a file and its bytes: some good rows, and anything among them."""
    kind = draw(st.sampled_from(["jsonl", "jsonl", "jsonl", "json", "csv"]))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    usable = draw(st.lists(good(), min_size=4, max_size=6))
    mixed = lambda rows, more: draw(st.permutations([*rows, *more]))
    if kind == "jsonl":
        more = draw(st.lists(line(), max_size=8))
        lines = mixed([json.dumps(row).encode() for row in usable], more)
        content = end.join(lines) + draw(st.sampled_from([b"", end]))
    elif kind == "json":
        rows = mixed(usable, draw(st.lists(spoilt() | values(), max_size=5)))
        content = json.dumps(rows, indent=draw(st.sampled_from([None, 1]))).encode()
    else:
        cell = text() | st.sampled_from(["2 + 2 =", " 4", " 5"])
        more = draw(st.lists(st.lists(cell, min_size=2, max_size=4), max_size=5))
        content = as_csv(mixed([[*PAIR.values()]] * len(usable), more), end.decode())
    if draw(st.booleans()):
        content = b"\xef\xbb\xbf" + content
    if draw(st.integers(0, 3)) == 3:  # what a disk or a copy does to it
        at = max(0, len(content) - draw(st.integers(0, 40)))
        content = content[:at] + draw(st.binary(max_size=3))
    if draw(st.integers(0, 3)) == 3:
        content = gzip.compress(content)
        if draw(st.integers(0, 7)) == 7:
            content = content[: -draw(st.integers(1, 12))]
        return f"rows.{kind}.gz", content
    return f"rows.{kind}", content


def as_csv(rows: Iterable[list[str]], end: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end)
    writer.writerow(["prompt", "chosen", "rejected"])
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


@settings(
    max_examples=repeats(100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(files())
@example(
    (
        "rows.jsonl",
        b'{"prompt": "2", "chosen": "a", "rejected": "b", "margin": '
        + b"9" * 400
        + b"}",
    )
)
def test_every_row_is_used_or_put_aside(byte_tokenizer, file):
    name, content = file
    byte_tokenizer.chat_template = TEMPLATE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        origins = check_records(path)
        texts = check_scripts(path, byte_tokenizer)
    if origins is not None and texts is not None:
        assert origins == texts.reading.rows.keys() | texts.reading.faults.keys()
        event("some rows quarantined" if texts.reading.faults else "all rows used")
    if origins is not None and path.suffix == ".jsonl":
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        told = [n for n, x in enumerate(lines, 1) if x.decode(errors="replace").strip()]
        assert origins == {f"{path}:{number}" for number in told}


def one_line(error: UserError) -> None:
    assert str(error) and "\n" not in str(error)


def check_records(path: Path) -> set[str] | None:
    """The origins of all rows that ``read_records`` read."""
    try:
        read = read_records(path)
    except UserError as error:
        event("no such file to read_records")
        return one_line(error)
    used = {record.origin for record in read.records}
    aside = [fault.origin for fault in read.quarantined]
    assert not used & {*aside} and len(aside) == len({*aside})
    assert len(used) + len(aside) == read.num_rows
    assert all(fault.reason and "\n" not in fault.reason for fault in read.quarantined)
    return used | {*aside}


def check_scripts(path: Path, tokenizer) -> Texts | None:
    """What the scripts read, to token ids; nothing where they stop with an error."""
    data = DataConfig(str(path), max_faulty=0.999)

    def tokenize(pairs: list) -> list:
        done, _ = tokenize_pairs(pairs, tokenizer, max_length=64)
        assert all(len(pair.prompt + pair.chosen) <= 64 for pair in done)
        return done

    try:
        texts = read_data(data, PAIRS, run_dir=path.parent, seed=0)
        learned, held_out = tokenize_data(data, texts, tokenize)
    except UserError as error:
        event("the scripts stop")
        return one_line(error)
    used = {pair.origin for pair in (*learned, *held_out)}
    check_quarantine(path.parent, used, texts.reading.rows.keys())
    return texts


def check_quarantine(folder: Path, used: set[str], rows: Iterable[str]) -> None:
    aside = folder / QUARANTINE
    found = [row.values for row in read_rows(aside)] if aside.exists() else []
    origins = {row["origin"] for row in found}
    assert len(origins) == len(found) and not used & origins
    assert used | origins >= {*rows}
    assert all(row["reason"] and isinstance(row["raw"], str) for row in found)


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "' + b"4" * 10 * 2**20 + b'"}\n' + b'{"prompt": "a"}\n',
        b"[" * 10 * 2**20 + b'\n{"prompt": "a"}\n',
        b'{"prompt": ' + b"9" * 10 * 2**20 + b'}\n{"prompt": "a"}\n',
    ],
    ids=["text", "nested", "a number"],
)
def test_a_row_of_10_megabytes_takes_few_copies(make_file, content):
    path = make_file("rows.jsonl", content)
    tracemalloc.start()
    read = read_records(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(read.records), len(read.quarantined)) == (1, 1)
    assert most < 10 * len(content)
