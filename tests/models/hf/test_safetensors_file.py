"""One file: what its header says is checked in full before any tensor is read."""

import json
import os
import struct
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf_jax.models.hf.files import open_tensors
from rlhf_jax.models.hf.safetensors_file import CheckpointFileError, read_header

TWO_63 = 2**63
ONE = np.ones(3, np.float32)


def refused(message: str):
    """An error of one line that says this."""
    return pytest.raises(CheckpointFileError, match=rf"\A(?=[^\n]*\Z).*{message}")


def entry(begin: int, end: int, shape: object = None, dtype: object = "U8") -> dict:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """The bytes of a safetensors file, with any header and any length of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


EVERY_DTYPE = [
    *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.complex64, np.bool),
    *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_every_dtype_comes_back(tmp_path, dtype):
    tensors = {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.array(1, dtype),
        "nothing": np.zeros((0, 4), dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = open_tensors(tmp_path)
    assert files.specs.keys() == tensors.keys()
    for name, x in tensors.items():
        assert (files.specs[name].shape, files.specs[name].dtype) == (x.shape, x.dtype)
        assert_same(files.read(name), x)


def test_what_is_read_is_a_copy(tmp_path):
    save_file({"w": ONE}, tmp_path / "model.safetensors")
    files = open_tensors(tmp_path)
    files.read("w")[0] = 5
    assert_same(files.read("w"), ONE)


BROKEN_FILES = {
    "empty": (b"", "0 bytes, too few for a header: "),
    "seven bytes": (b"\0" * 7, "7 bytes, too few for a header: "),
    "header of 2**64 - 1": (
        file_of({}, length=2**64 - 1),
        "10 bytes, too few for a header of 18446744073709551615 bytes",
    ),
    "header beyond the file": (file_of({}, length=3), "for a header of 3 bytes"),
    "not JSON": (file_of(b"{nope}"), r"header: not JSON \(Expecting property name"),
    "not UTF-8": (file_of(b"\xff\xfe"), "header: not JSON .*can't decode"),
    "nested": (file_of(b"[" * 50_000), r"header: not JSON \(maximum recursion"),
    "huge number": (file_of(b"1" * 5_000), r"header: not JSON \(Exceeds the limit"),
    "not an object": (file_of([1]), "header: a JSON list, expected an object"),
    "same name twice": (
        file_of(b'{"a.w": 1, "b": 2, "a.w": 3}'),
        r"header: not JSON \('a\.w' occurs twice",
    ),
    "dtype twice": (file_of(b'{"w":{"dtype":1,"dtype":2}}'), "'dtype' occurs twice"),
    "entry is no object": (file_of({"w": 3}), "tensor 'w': 3, expected dtype, shape"),
    "entry lacks offsets": (
        file_of({"w": {"dtype": "U8", "shape": [1]}}),
        "tensor 'w': .*expected dtype, shape and data_offsets",
    ),
    "unknown dtype": (
        file_of({"w": entry(0, 4, dtype="F8_E4M3")}, b"abcd"),
        "tensor 'w': dtype 'F8_E4M3', expected one of BF16",
    ),
    "dtype is a list": (file_of({"w": entry(0, 0, dtype=[])}), r"'w': dtype \[\], "),
    "negative shape": (
        file_of({"w": entry(0, 1, [-1, -1])}, b"a"),
        r"tensor 'w': shape \[-1, -1\], expected a list",
    ),
    "shape of floats": (file_of({"w": entry(0, 1, [1.0])}, b"a"), r"shape \[1\.0\]"),
    "shape of bools": (file_of({"w": entry(0, 1, [True])}, b"a"), r"shape \[True\]"),
    "shape is a string": (file_of({"w": entry(0, 1, "1")}, b"a"), "'w': shape '1'"),
    "axis of 2**63": (file_of({"w": entry(0, 1, [TWO_63])}), r"shape \[92233.*list"),
    "many axes": (file_of({"w": entry(0, 1, [1] * 65)}, b"a"), "at most 64 whole"),
    "huge shape": (
        file_of({"w": entry(0, 4, [2**31, 2**31], "F32")}, b"abcd"),
        r"tensor 'w': shape .* larger than any memory",
    ),
    "huge shape of no bytes": (
        file_of({"w": entry(0, 0, [0, 2**62], "F64")}),
        "tensor 'w': shape .* larger than any memory",
    ),
    "huge shape in agreement": (
        file_of({"w": entry(0, 2**50)}, b"abcd"),
        r"expected 11258999\d+, where tensor 'w' ends: truncated",
    ),
    "offsets backwards": (
        file_of({"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"a"),
        r"tensor 'w': data_offsets \[1, 0\]",
    ),
    "offsets negative": (
        file_of({"w": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}, b"a"),
        r"tensor 'w': data_offsets \[-1, 0\]",
    ),
    "three offsets": (
        file_of({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"a"),
        r"tensor 'w': data_offsets \[0, 1, 2\]",
    ),
    "bytes are not the shape's": (
        file_of({"w": entry(0, 4, [3], "U8")}, b"abcd"),
        r"tensor 'w': U8\[3\] takes 3 bytes, but data_offsets \[0, 4\] hold 4",
    ),
    "overlap": (
        file_of({"v": entry(0, 3), "w": entry(2, 4)}, b"abcd"),
        r"tensor 'w' overlaps .*begins at 2, expected 3",
    ),
    "same bytes": (
        file_of({"v": entry(0, 4), "w": entry(0, 4)}, b"abcd"),
        r"tensor 'w' overlaps .*begins at 0, expected 4",
    ),
    "hole": (
        file_of({"v": entry(0, 1), "w": entry(2, 4)}, b"abcd"),
        r"tensor 'w' leaves a hole .*begins at 2, expected 1",
    ),
    "hole before the first": (
        file_of({"w": entry(1, 4)}, b"abcd"),
        r"tensor 'w' leaves a hole .*begins at 1, expected 0",
    ),
    "beyond the end": (
        file_of({"v": entry(0, 1), "w": entry(1, 5)}, b"abcd"),
        r"where tensor 'w' ends: truncated",
    ),
    "bytes left over": (
        file_of({"w": entry(0, 3)}, b"abcd"),
        "where tensor 'w' ends: bytes left over",
    ),
    "no tensor but bytes": (file_of({}, b"a"), "11 bytes, expected 10: bytes left"),
    "name of a terminal": (
        file_of({"\x1b[2J\n": entry(0, 4)}, b"abc"),
        r"tensor '\\x1b\[2J\\n' ends: truncated",
    ),
    "endless name": (file_of({"n" * 5_000: 1}), r"tensor 'n{116}\.\.\.: 1, expected"),
}


@pytest.mark.fault(25)
@pytest.mark.parametrize("content, message", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_broken_file(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with refused(rf"/model\.safetensors: .*{message}"):
        open_tensors(tmp_path)


def test_the_smallest_files_are_not_broken(tmp_path):
    """What BROKEN_FILES is made with is read, where nothing is broken."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({}))
    assert read_header(path) == {}
    path.write_bytes(file_of({"w": entry(1, 4), "v": entry(0, 1)}, b"abcd"))
    assert open_tensors(tmp_path).read("w").tobytes() == b"bcd"


@pytest.mark.fault(25)
def test_huge_header_is_never_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:  # a file of holes: it takes no disk
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    with refused(r"/model\.safetensors: a header of 100000001 bytes, at most 1000"):
        read_header(path)


def test_a_name_twice_among_many_is_found_fast(tmp_path):
    names = ",".join(f'"{i}":1' for i in range(50_000)) + ',"49999":1'
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(b"{" + names.encode() + b"}"))
    start = time.perf_counter()
    with refused("'49999' occurs twice"):
        read_header(path)
    assert time.perf_counter() - start < 5


@pytest.mark.fault(25)
def test_file_that_shrinks_or_goes_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": ONE}, path)
    files = open_tensors(tmp_path)
    os.truncate(path, path.stat().st_size - 2)
    with refused(r"/model\.safetensors: tensor 'w': 10 of 12 bytes are there"):
        files.read("w")
    path.unlink()
    with refused(r"/model\.safetensors: tensor 'w': cannot be read .*No such file"):
        files.read("w")
