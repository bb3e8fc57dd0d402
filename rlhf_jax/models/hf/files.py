"""The files of a Hugging Face checkpoint, read without any knowledge of models.

What is in a checkpoint is data: weights come from safetensors alone, nothing is ever
unpickled, and no code that lies beside the weights is ever run.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HFValidationError

from rlhf_jax.models.hf.safetensors_file import (
    MAX_HEADER,
    CheckpointFileError,
    TensorSpec,
    parse_object,
    read_header,
    read_tensor,
    show,
)

MAX_CONFIG = 10_000_000  # bytes
_DOWNLOADED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin.index.json")


def resolve(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """Finds the folder of a checkpoint, on this disk or on the hub. No reference.

    Args:
      path_or_id: a folder, or a hub id such as ``"org/name"``; a folder of that name
        comes first. Of a hub repository only safetensors, JSON and tokenizer files are
        downloaded; without a network its last download is used.
      revision: of a hub id: branch, tag or commit; None is the main branch.

    Returns:
      The folder.

    Raises:
      CheckpointFileError: neither a folder nor found on the hub or in its cache.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> resolve(folder) == Path(folder)
    True
    """
    path = Path(path_or_id)
    if path.is_dir() and revision is not None:
        raise CheckpointFileError(
            f"{path}: a folder here has no revision {revision!r}: leave it out"
        )
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointFileError(f"{path}: a file: name the folder that it is in")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(path_or_id),
                revision=revision,
                allow_patterns=_DOWNLOADED,
                ignore_patterns="*/*",  # other formats lie in folders below
            )
        )
    except HFValidationError as error:
        raise CheckpointFileError(
            f"{path_or_id}: no such folder, and no hub id (org/name): check the path"
        ) from error
    except Exception as error:  # of the hub, the network, the proxy, the disk
        at = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointFileError(
            f"{path_or_id}: no such folder, and not found on the hub{at} or in its "
            f"cache ({type(error).__name__}): check the name and the network, or "
            f"download it first: hf download {path_or_id}"
        ) from error


def read_object(path: str | Path, *, max_bytes: int = MAX_CONFIG) -> dict[str, Any]:
    """Reads a JSON object that somebody else wrote. No reference.

    Args:
      path: the file.
      max_bytes: more than this is neither read nor parsed.

    Returns:
      The object.

    Raises:
      CheckpointFileError: missing, unreadable, too large, not JSON, a name twice, or
        no object.
    """
    if not Path(path).is_file():
        raise CheckpointFileError(f"{path}: no such file: check the folder")
    try:
        with open(path, "rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointFileError(
            f"{path}: cannot be read ({error.strerror})"
        ) from error
    if len(text) > max_bytes:
        raise CheckpointFileError(
            f"{path}: more than {max_bytes} bytes: too large to be what its name says: "
            f"get the file again"
        )
    return parse_object(text, str(path))


def read_config(
    folder: str | Path, *, ignore_remote_code: bool = False
) -> dict[str, Any]:
    """Reads the ``config.json`` of a checkpoint. No reference.

    Args:
      folder: of the checkpoint.
      ignore_remote_code: read a checkpoint that brings code (``auto_map`` in its
        ``config.json`` or ``tokenizer_config.json``) as if it brought none.

    Returns:
      The config, without its ``auto_map``.

    Raises:
      CheckpointFileError: the file is missing or broken, or the checkpoint brings code.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "config.json").write_text('{"model_type": "llama"}')
    >>> read_config(folder)
    {'model_type': 'llama'}
    """
    path = Path(folder) / "config.json"
    config = read_object(path)
    tokenizer = Path(folder) / "tokenizer_config.json"
    others = {tokenizer: read_object(tokenizer)} if tokenizer.is_file() else {}
    for file, found in ({path: config} | others).items():
        if found.get("auto_map") and not ignore_remote_code:
            raise CheckpointFileError(
                f"{file}: auto_map asks to run code of the checkpoint "
                f"({show(found['auto_map'])}), which is never run: pass "
                f"ignore_remote_code=True if the architecture is a known one"
            )
    config.pop("auto_map", None)
    return config


@dataclasses.dataclass(frozen=True)
class TensorFiles:
    """The tensors of a checkpoint: known by name, read one at a time."""

    folder: Path
    specs: Mapping[str, TensorSpec]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into memory of its own, as it is in the file.

        Args:
          name: one of ``specs``.

        Raises:
          CheckpointFileError: no such tensor, or the file has changed.
        """
        if name not in self.specs:
            raise CheckpointFileError(f"{self.folder}: no tensor {name!r}")
        return read_tensor(name, self.specs[name])


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of the shard it is in, a plain name."""
    weight_map = read_object(index, max_bytes=MAX_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFileError(
            f"{index}: weight_map {show(weight_map)}, expected an object of tensor and "
            f"file names: get the file again"
        )
    for name, file in weight_map.items():
        # Nothing outside the folder, on any system, and nothing pickled.
        if not isinstance(file, str) or not re.fullmatch(
            r"[^/\\:\0]+\.safetensors", file
        ):
            raise CheckpointFileError(
                f"{index}: tensor {show(name)} in file {show(file)}, expected a plain "
                f"name that ends in .safetensors: never read"
            )
    return weight_map


def _refuse_missing(folder: Path, filename: str) -> None:
    if not folder.is_dir():
        raise CheckpointFileError(f"{folder}: no such folder: check the path")
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled and not others:  # a trainer pickles its own state beside safetensors
        raise CheckpointFileError(
            f"{folder}: weights only as pickles ({show(', '.join(pickled))}): "
            f"unpickling runs code, so they are never read: convert them with "
            f"transformers: save_pretrained writes safetensors"
        )
    raise CheckpointFileError(
        f"{folder}: neither {filename} nor {filename}.index.json"
        + (f" (but {show(', '.join(others))})" if others else "")
        + ": choose a checkpoint that transformers' save_pretrained wrote"
    )


def _read_shards(index: Path, weight_map: dict[str, str]) -> dict[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.with_name(shard)
        if not path.is_file():
            raise CheckpointFileError(
                f"{path}: no such file, though {index.name} names it: get it"
            )
        found = read_header(path)
        for name in found:
            if name in specs:
                raise CheckpointFileError(
                    f"{path}: tensor {show(name)} is in {specs[name].file.name} as "
                    f"well: get the files again"
                )
            if name not in weight_map:
                raise CheckpointFileError(
                    f"{path}: tensor {show(name)} is not in {index.name}: get the "
                    f"files again"
                )
        specs |= found
    for name, shard in weight_map.items():
        if name not in specs or specs[name].file.name != shard:
            raise CheckpointFileError(
                f"{index.with_name(shard)}: no tensor {show(name)}, though "
                f"{index.name} says so: get the files again"
            )
    return specs


def open_tensors(
    folder: str | Path, *, filename: str = "model.safetensors"
) -> TensorFiles:
    """Reads and checks every header of a checkpoint; loads no tensor. No reference.

    Args:
      folder: of the checkpoint.
      filename: of its only file; with several, ``{filename}.index.json`` says which.

    Returns:
      The tensors, to be read one at a time.

    Raises:
      CheckpointFileError: no safetensors there, a file is missing, or a file or the
        index is broken in any way.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> folder = tempfile.mkdtemp()
    >>> save_file({"w": np.arange(3)}, folder + "/model.safetensors")
    >>> open_tensors(folder).read("w")
    array([0, 1, 2])
    """
    single = Path(folder) / filename
    index = Path(folder) / f"{filename}.index.json"
    if not index.exists():
        if not single.is_file():
            _refuse_missing(Path(folder), filename)
        return TensorFiles(Path(folder), read_header(single))
    weight_map = _weight_map(index)
    if single.is_file() and filename not in weight_map.values():
        raise CheckpointFileError(
            f"{single}: not in {index.name}, which lies beside it: which of the two is "
            f"the model? remove the other"
        )
    return TensorFiles(Path(folder), _read_shards(index, weight_map))
