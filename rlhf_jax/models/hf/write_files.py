"""Writes a checkpoint as transformers reads it: safetensors, an index, small files."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rlhf_jax.models.hf.safetensors_file import DTYPES, CheckpointFileError, TensorSpec

Spec = TensorSpec | jax.ShapeDtypeStruct


def _nbytes(spec: Spec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def _check_target(folder: Path) -> None:
    if os.path.ismount(folder):
        raise CheckpointFileError(
            f"{folder}: a mounted disk cannot be replaced: choose a folder inside it"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointFileError(
            f"{folder}: exists and is not an empty folder: choose another one, or "
            f"remove it"
        )


def _check_tensors(folder: Path, tensors: Mapping[str, Spec]) -> None:
    if not tensors:
        raise CheckpointFileError(f"{folder}: no tensors to write")
    for name, spec in tensors.items():
        if name == "__metadata__":  # what the format calls something else
            raise CheckpointFileError(f"{folder}: tensor {name!r}: choose another name")
        if spec.dtype not in DTYPES.values():
            raise CheckpointFileError(
                f"{folder}: tensor {name!r}: dtype {spec.dtype}, expected one of "
                f"{', '.join(map(str, DTYPES.values()))}: convert it"
            )


def _shards(
    tensors: Mapping[str, Spec], stem: str, max_shard_size: int | str
) -> StateDictSplit:
    try:
        return split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=_nbytes,
            filename_pattern=stem + "{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise CheckpointFileError(
            f"max_shard_size={max_shard_size!r}: expected bytes, or such as '500MB'"
        ) from error


@contextlib.contextmanager
def _explained(folder: Path, tensors: Mapping[str, Spec]) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        needed = sum(map(_nbytes, tensors.values()))
        parent = next(path for path in folder.parents if path.exists())
        raise CheckpointFileError(
            f"{folder}: cannot be written ({error}): its tensors need {needed} "
            f"bytes, {shutil.disk_usage(parent).free} are free: free space, or choose "
            f"a folder that can be written"
        ) from error


def _read(name: str, spec: Spec, read: Callable[[str], np.ndarray]) -> np.ndarray:
    # safetensors writes the bytes as they lie in memory: C order or a wrong tensor.
    array = np.asarray(read(name), order="C")
    if array.shape != spec.shape or array.dtype != spec.dtype:
        raise CheckpointFileError(
            f"tensor {name!r}: read as {array.dtype}{list(array.shape)}, expected "
            f"{spec.dtype}{list(spec.shape)}"
        )
    return array


def _write_shard(
    path: Path, tensors: Mapping[str, Spec], read: Callable[[str], np.ndarray]
) -> None:
    arrays = {name: _read(name, spec, read) for name, spec in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # as everybody's files: save_file leaves the owner's
    # transformers refuses a file that does not say "pt".
    save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(mode)


def _sync(path: Path) -> None:
    """To disk: before the rename, so that nothing can be missing after it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, Spec],
    read: Callable[[str], np.ndarray],
    *,
    files: Mapping[str, str | bytes],
    extra: Callable[[Path], object] | None = None,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes a checkpoint that transformers can load, all of it or nothing.

    No reference. Everything goes into a temporary folder beside the target, which is
    renamed when all is on disk. The tensors of one file are in memory at a time.

    Args:
      folder: where it shall be; its parents are made.
      tensors: shape and dtype of every tensor, in the order to be written.
      read: gives the tensor of a name, in any memory layout; called once for each.
      files: small files by name, such as ``config.json``.
      extra: adds more files to the folder it is given, such as a tokenizer's.
      stem: of the names of the safetensors files.
      max_shard_size: of one file, in bytes or such as "500MB"; larger tensors get a
        file of their own.

    Raises:
      CheckpointFileError: the folder is there and not empty, cannot be written or its
        disk is full, or a tensor is not as announced. What was there is untouched.

    >>> from rlhf_jax.models.hf.files import open_tensors
    >>> folder = tempfile.mkdtemp()
    >>> w = np.ones((2, 3), np.float32)
    >>> specs = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype)}
    >>> write_checkpoint(folder, specs, {"w": w}.__getitem__, files={})
    >>> open_tensors(folder).read("w").shape
    (2, 3)
    """
    folder = Path(folder).resolve()
    _check_target(folder)
    _check_tensors(folder, tensors)
    shards = _shards(tensors, stem, max_shard_size)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        files = {**files, f"{stem}.safetensors.index.json": json.dumps(index, indent=2)}
    with _explained(folder, tensors):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The folder lies in another one, because a temporary one is its owner's alone.
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent
        ) as outer:
            half = Path(outer) / folder.name
            half.mkdir()
            for file, names in shards.filename_to_tensors.items():
                _write_shard(half / file, {name: tensors[name] for name in names}, read)
            for name, content in files.items():
                text = content.encode() if isinstance(content, str) else content
                (half / name).write_bytes(text)
            if extra is not None:
                extra(half)
            for path in [*half.rglob("*"), half]:
                _sync(path)
            half.rename(folder)
            _sync(folder.parent)
