"""One safetensors file: its header, checked in full, and one tensor at a time.

A file is 8 bytes that hold the length of the header, the header as JSON (dtype, shape
and place of every tensor), and the bytes of the tensors without a gap. The header is
read here and not by the safetensors library for two reasons: an error can name the
tensor, and a tensor can be read without the pages of the whole file.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rlhf_jax.errors import UserError

MAX_HEADER = 100_000_000  # bytes; what the safetensors library allows as well
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool),
    "C64": np.dtype(np.complex64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "U8": np.dtype(np.uint8),
}


class CheckpointFileError(UserError):
    """Names the file, and the tensor if there is one, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor of a safetensors file, not loaded."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    start: int  # of its first byte in the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def show(value: Any) -> str:
    """What a file holds, fit for one line: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{show(twice)} occurs twice")
    return found


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object that somebody else wrote. No reference.

    Args:
      text: UTF-8.
      where: what it is, as an error names it.

    Returns:
      The object.

    Raises:
      CheckpointFileError: not JSON, a name twice, or no object.

    >>> parse_object(b"[1]", "config.json")
    Traceback (most recent call last):
    rlhf_jax.models.hf.safetensors_file.CheckpointFileError: config.json: ...
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointFileError(
            f"{where}: not JSON ({error}): get the file again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointFileError(
            f"{where}: a JSON {type(value).__name__}, expected an object: get the file "
            f"again"
        )
    return value


def _read_header_text(path: Path) -> tuple[bytes, int]:
    """The header's JSON and the size of the file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            raise CheckpointFileError(
                f"{path}: {size} bytes, too few for "
                + (f"a header of {length} bytes" if len(first) == 8 else "a header")
                + ": truncated or no safetensors file: get it again"
            )
        if length > MAX_HEADER:  # before anything is allocated
            raise CheckpointFileError(
                f"{path}: a header of {length} bytes, at most {MAX_HEADER} are read: "
                f"get the file again"
            )
        return file.read(length), size


def _whole_numbers(value: Any) -> bool:
    """A list as a shape is one: bounded, so that no product of it gets out of hand."""
    return (
        isinstance(value, list)
        and len(value) <= 64  # what numpy holds
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _spec(path: Path, name: str, info: Any, data: int) -> tuple[TensorSpec, int]:
    """One entry of the header, and where its bytes end; data is where all begin."""
    where = f"{path}: tensor {show(name)}"
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= {*info}:
        raise CheckpointFileError(
            f"{where}: {show(info)}, expected dtype, shape and data_offsets: get the "
            f"file again"
        )
    kind, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointFileError(
            f"{where}: dtype {show(kind)}, expected one of {', '.join(DTYPES)}: save "
            f"it in one of these"
        )
    if not _whole_numbers(shape):
        raise CheckpointFileError(
            f"{where}: shape {show(shape)}, expected a list of at most 64 whole numbers"
            f" from 0 to 2**63 - 1: get the file again"
        )
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointFileError(
            f"{where}: data_offsets {show(offsets)}, expected [begin, end]: get the "
            f"file again"
        )
    spec = TensorSpec(tuple(shape), DTYPES[kind], path, data + offsets[0])
    # numpy bounds the product of the axes that are not 0, though it holds no bytes.
    if math.prod(n or 1 for n in shape) * spec.dtype.itemsize >= 2**63:
        raise CheckpointFileError(
            f"{where}: shape {show(shape)} is larger than any memory: get the file "
            f"again"
        )
    if offsets[1] - offsets[0] != spec.nbytes:
        raise CheckpointFileError(
            f"{where}: {kind}{shape} takes {spec.nbytes} bytes, but data_offsets "
            f"{offsets} hold {offsets[1] - offsets[0]}: get the file again"
        )
    return spec, data + offsets[1]


def read_header(path: str | Path) -> dict[str, TensorSpec]:
    """Reads and checks the header of a safetensors file; loads no tensor.

    Reference: the format's own description,
    https://github.com/huggingface/safetensors#format

    Args:
      path: the file.

    Returns:
      Its tensors by name, in the order of their bytes.

    Raises:
      CheckpointFileError: the file is unreadable, truncated, or not what its header
        says: every byte must belong to exactly one tensor.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_file({"w": np.ones((2, 3), np.float32)}, path)
    >>> read_header(path)["w"].shape
    (2, 3)
    """
    path = Path(path)
    try:
        text, size = _read_header_text(path)
    except OSError as error:
        raise CheckpointFileError(
            f"{path}: cannot be read ({error.strerror})"
        ) from error
    header = parse_object(text, f"{path}: header")
    header.pop("__metadata__", None)
    data = position = 8 + len(text)
    specs = [(name, *_spec(path, name, x, data)) for name, x in header.items()]
    specs.sort(key=lambda entry: (entry[1].start, entry[2]))
    for name, spec, end in specs:
        if spec.start != position:
            fault = "overlaps with" if spec.start < position else "leaves a hole after"
            raise CheckpointFileError(
                f"{path}: tensor {show(name)} {fault} the bytes before it (begins at "
                f"{spec.start - data}, expected {position - data}): get the file again"
            )
        position = end
    if position != size:
        last = f", where tensor {show(specs[-1][0])} ends" if specs else ""
        raise CheckpointFileError(
            f"{path}: {size} bytes, expected {position}{last}: "
            f"{'truncated' if size < position else 'bytes left over'}: get it again"
        )
    return {name: spec for name, spec, _ in specs}


def read_tensor(name: str, spec: TensorSpec) -> np.ndarray:
    """Reads one tensor into memory of its own. No reference.

    Args:
      name: as an error names it.
      spec: of ``read_header``.

    Returns:
      The tensor; when it is dropped, its memory is free again.

    Raises:
      CheckpointFileError: the file is unreadable or has changed since its header was
        read.
    """
    try:
        # No mmap: its pages would count as memory of this process until it is closed.
        raw = np.fromfile(spec.file, np.uint8, count=spec.nbytes, offset=spec.start)
    except OSError as error:
        raise CheckpointFileError(
            f"{spec.file}: tensor {show(name)}: cannot be read ({error})"
        ) from error
    if raw.size != spec.nbytes:
        raise CheckpointFileError(
            f"{spec.file}: tensor {show(name)}: {raw.size} of {spec.nbytes} bytes are "
            f"there: the file was changed while it was read: start again"
        )
    return raw.view(spec.dtype).reshape(spec.shape)
