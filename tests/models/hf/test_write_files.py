"""What is written is what torch and transformers read, or nothing is written."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from rlhf_jax.models.hf.files import open_tensors
from rlhf_jax.models.hf.safetensors_file import CheckpointFileError
from rlhf_jax.models.hf.write_files import write_checkpoint

INDEX = "model.safetensors.index.json"


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def awkward() -> dict[str, np.ndarray]:
    """Arrays whose bytes do not lie in memory as the file wants them."""
    return {
        "plain": numbers(4, 3),
        "bf16": numbers(4, 3, dtype=ml_dtypes.bfloat16),
        "transposed": numbers(4, 3).T,
        "transposed_bf16": numbers(2, 3, 4, dtype=ml_dtypes.bfloat16).transpose(
            2, 0, 1
        ),
        "sliced": numbers(9, 8)[1::2, ::3],
        "backwards": numbers(5)[::-1],
        "repeated": np.broadcast_to(numbers(3), (2, 3)),
        "fortran": np.asfortranarray(numbers(4, 5)),
        "scalar": np.array(3, np.int64),
        "nothing": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False]),
    }


def specs_of(arrays: dict) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def write(folder: Path, arrays: dict, files: dict | None = None, **options) -> None:
    read = arrays.__getitem__
    write_checkpoint(folder, specs_of(arrays), read, files=files or {}, **options)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("max_shard_size, shards", [("5GB", 1), (100, 4), (1, 11)])
def test_round_trip(tmp_path, max_shard_size, shards):
    arrays = awkward()
    write(tmp_path / "out", arrays, max_shard_size=max_shard_size)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    if shards == 1:
        assert names == ["model.safetensors"]
    else:
        assert names[0] == f"model-00001-of-{shards:05}.safetensors"
        assert names[-1] == INDEX and len(names) == shards + 1
    files = open_tensors(tmp_path / "out")
    assert files.specs.keys() == arrays.keys()
    for name, x in arrays.items():
        assert_same(files.read(name), x)


def test_read_with_specs_of_another_checkpoint(tmp_path):
    write(tmp_path / "a", awkward(), max_shard_size=100)
    a = open_tensors(tmp_path / "a")
    write_checkpoint(tmp_path / "b", a.specs, a.read, files={})
    b = open_tensors(tmp_path / "b")
    for name in a.specs:
        assert_same(b.read(name), a.read(name))


def test_jax_arrays(tmp_path):
    arrays = {"w": jnp.arange(6.0, dtype=jnp.bfloat16).reshape(2, 3).T}
    write(tmp_path / "out", arrays)
    assert_same(open_tensors(tmp_path / "out").read("w"), np.asarray(arrays["w"]))


def test_small_files_index_and_metadata(tmp_path):
    out = tmp_path / "new" / "out"  # parents are made
    out.mkdir(parents=True)  # and an empty folder is taken
    extra = lambda folder: (folder / "tokenizer.json").write_text("t")
    files = {"config.json": "ä", "spiece.model": b"\xff"}
    arrays = {"a": numbers(10), "b": numbers(10)}
    write(out, arrays, files=files, extra=extra, max_shard_size=40)
    assert (out / "config.json").read_text("utf-8") == "ä"
    assert (out / "spiece.model").read_bytes() == b"\xff"
    assert (out / "tokenizer.json").read_text() == "t"
    a, b = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    index = json.loads((out / INDEX).read_text())
    assert index == {"metadata": {"total_size": 80}, "weight_map": {"a": a, "b": b}}
    with safe_open(out / a, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


def test_memory_of_one_shard(tmp_path):
    """60 MB in shards of 20 MB: never more than one of them in memory."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is measured where Linux tells it")
    out = tmp_path / "out"
    code = f"""
import jax
import numpy as np
from rlhf_jax.models.hf.write_files import write_checkpoint

def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(file.read().split("VmHWM:")[1].split()[0])

specs = {{name: jax.ShapeDtypeStruct((10_000_000,), np.uint8) for name in "abcdef"}}
read = lambda name: np.ones(10_000_000, np.uint8)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = peak()
write_checkpoint({str(out)!r}, specs, read, files={{}}, max_shard_size=2 * 10**7)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(list(out.iterdir())) == 4
    # The kernel counts roughly; far less would mean that nothing was measured.
    assert 18_000_000 < int(run.stdout) < 24_000_000


W = {"w": np.ones(3, np.float32)}


@pytest.mark.parametrize("what", ["file", "file in it", "folder in it"])
def test_existing_target_is_untouched(tmp_path, what):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("old")
    else:
        out.mkdir()
        (out / "old").touch() if what == "file in it" else (out / "old").mkdir()
    with pytest.raises(CheckpointFileError, match="/out: exists and is not an empty"):
        write(out, W)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_text() == "old" if what == "file" else (out / "old").exists()


def test_mounted_disk():
    with pytest.raises(CheckpointFileError, match="/: a mounted disk cannot be"):
        write(Path("/"), W)


@pytest.mark.parametrize("fault", [KeyError("gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["read", "extra"])
def test_an_exception_leaves_nothing(tmp_path, where, fault):
    """Even when the first shard is on disk already."""

    def fail(*_):
        assert list(tmp_path.rglob("*.safetensors"))
        raise fault

    def read(name):
        return fail() if (where, name) == ("read", "b") else np.ones(3, np.float32)

    specs = {name: jax.ShapeDtypeStruct((3,), np.float32) for name in "ab"}
    extra = fail if where == "extra" else None
    out = tmp_path / "out"
    with pytest.raises(type(fault)):
        write_checkpoint(out, specs, read, files={}, extra=extra, max_shard_size=12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arrays, spec, message",
    [
        (
            W,
            jax.ShapeDtypeStruct((3,), np.int32),
            r"'w': read as float32\[3\], .*int32",
        ),
        (W, jax.ShapeDtypeStruct((4,), np.float32), r"'w': .*expected float32\[4\]"),
        (
            W,
            jax.ShapeDtypeStruct((3,), jnp.int4),
            "'w': dtype int4, expected one of bf",
        ),
        (W, jax.eval_shape(jax.random.key, 0), r"'w': dtype key<fry>, expected one of"),
    ],
)
def test_tensor_that_is_not_as_announced(tmp_path, arrays, spec, message):
    with pytest.raises(CheckpointFileError, match=message):
        write_checkpoint(tmp_path / "out", {"w": spec}, arrays.__getitem__, files={})
    assert list(tmp_path.iterdir()) == []


def test_options_that_make_no_sense(tmp_path):
    with pytest.raises(CheckpointFileError, match="/out: no tensors to write"):
        write(tmp_path / "out", {})
    with pytest.raises(CheckpointFileError, match="'__metadata__': choose another"):
        write(tmp_path / "out", {"__metadata__": np.ones(1)})
    with pytest.raises(
        CheckpointFileError, match="max_shard_size='5 apples': expected"
    ):
        write(tmp_path / "out", W, max_shard_size="5 apples")


@pytest.mark.fault(8)
@pytest.mark.parametrize("big", ["tensor", "file", "extra"])
def test_disk_full(tmp_path, big):
    """A limit on the size of files stands for the disk's end."""
    size = {"tensor": 1_000, "file": 1_000, "extra": 1_000} | {big: 100_000}
    arrays = {"w": np.ones(size["tensor"], np.uint8)}
    extra = lambda folder: (folder / "t").write_bytes(b"x" * size["extra"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointFileError) as error:
            write(
                tmp_path / "out",
                arrays,
                files={"config.json": "x" * size["file"]},
                extra=extra,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/out: cannot be written (")
    assert "File too large" in message
    assert f"need {size['tensor']} bytes, " in message and " are free: " in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointFileError, match="/file/out: cannot be written"):
        write(tmp_path / "file" / "out", W)


@pytest.mark.fault(27)
def test_torch_reads_what_we_wrote(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle of this test")
    from safetensors.torch import load_file

    arrays = awkward()
    write(tmp_path / "out", arrays, max_shard_size=100)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert len(set(index["weight_map"].values())) == 4
    for name, file in index["weight_map"].items():
        tensor = load_file(tmp_path / "out" / file)[name]
        assert str(tensor.dtype) == f"torch.{arrays[name].dtype}"
        assert tuple(tensor.shape) == arrays[name].shape
        raw = tensor.flatten().view(torch.uint8).numpy()
        assert raw.tobytes() == arrays[name].tobytes()


def test_we_read_what_torch_wrote(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle of this test")
    from safetensors.torch import save_file

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {"a": x, "b": x.to(torch.bfloat16), "c": x.to(torch.float16)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = open_tensors(tmp_path)
    for name, tensor in tensors.items():
        assert str(tensor.dtype) == f"torch.{files.specs[name].dtype}"
        expected = tensor.view(torch.uint8).numpy()
        assert_same(files.read(name).view(np.uint8), expected)


@pytest.mark.fault(27)
def test_llama_of_transformers_there_and_back(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle of this test")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    theirs = open_tensors(tmp_path / "theirs")
    assert len({spec.file for spec in theirs.specs.values()}) > 2
    state = model.state_dict()
    assert theirs.specs.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.view(torch.uint16).numpy()
        assert_same(theirs.read(name).view(np.uint16), expected)

    files = {"config.json": (tmp_path / "theirs" / "config.json").read_text()}
    write_checkpoint(
        tmp_path / "ours",
        theirs.specs,
        theirs.read,
        files=files,
        max_shard_size="4KB",
    )
    back = LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    for name, tensor in back.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, state[name])
