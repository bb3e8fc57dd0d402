"""Checkpoints of others: what they hold comes back byte for byte, or a named error."""

import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from rlhf_jax.models.hf.files import open_tensors, read_config, resolve
from rlhf_jax.models.hf.safetensors_file import CheckpointFileError


def refused(message: str):
    """An error of one line that says this."""
    return pytest.raises(CheckpointFileError, match=rf"\A(?=[^\n]*\Z).*{message}")


def write_shards(folder: Path, shards: dict, weight_map: object = None) -> None:
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    if weight_map is None:
        weight_map = {name: file for file in shards for name in shards[file]}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


ONE = np.ones(3, np.float32)


def test_several_shards(tmp_path):
    a, b = {"x": ONE, "y": 2 * ONE}, {"z": 3 * ONE}
    write_shards(tmp_path, {"m-1.safetensors": a, "m-2.safetensors": b})
    save_file({"other": ONE}, tmp_path / "consolidated.safetensors")  # not in the index
    files = open_tensors(tmp_path)
    assert files.specs.keys() == {"x", "y", "z"}
    assert files.specs["z"].file == tmp_path / "m-2.safetensors"
    for name, x in (a | b).items():
        assert_same(files.read(name), x)


def test_an_index_of_the_single_file(tmp_path):
    write_shards(tmp_path, {"model.safetensors": {"w": ONE}})
    assert_same(open_tensors(tmp_path).read("w"), ONE)


def test_another_file_name(tmp_path):
    save_file({"w": ONE}, tmp_path / "adapter_model.safetensors")
    files = open_tensors(tmp_path, filename="adapter_model.safetensors")
    assert_same(files.read("w"), ONE)
    with refused(r"neither model\.saf.*index\.json \(but 'adapter_model\.safetensors'"):
        open_tensors(tmp_path)
    with refused("no tensor 'v'"):
        files.read("v")


A, B = "a.safetensors", "b.safetensors"
BROKEN_INDICES = {
    "missing shard": ({"x": A, "y": "c.safetensors"}, r"/c\.safetensors: no such file"),
    "not in its shard": (
        {"x": A, "y": B, "z.w": A},
        r"/a\.safetensors: no tensor 'z\.w', though model\.safetensors\.index\.json",
    ),
    "in another shard": ({"x": B, "y": A}, r"/b\.safetensors: no tensor 'x'"),
    "not in the index": ({"x": A, "q": B}, r"/b\.safetensors: tensor 'y' is not in "),
    "map is a list": ([A], r"index\.json: weight_map \['a\.safetensors'\], expected"),
    "map is empty": ({}, r"index\.json: weight_map {}, expected an object"),
    "file is a number": ({"x": 3}, "tensor 'x' in file 3, expected a plain name"),
} | {
    file: ({"x": file}, f"tensor 'x' in file {re.escape(repr(file))}, expected a plain")
    for file in (
        "../a.safetensors",
        "sub/a.safetensors",
        "/etc/a.safetensors",
        "..\\a.safetensors",
        "C:a.safetensors",
        "..",
        "",
        ".safetensors",
        "a.safetensors\0",
        "a.safetensors\n",
        "pytorch_model.bin",
        "a.safetensors.pt",
    )
}


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    "weight_map, message", BROKEN_INDICES.values(), ids=[*map(repr, BROKEN_INDICES)]
)
def test_broken_index(tmp_path, weight_map, message):
    write_shards(tmp_path, {A: {"x": ONE}, B: {"y": ONE}}, weight_map)
    with refused(message):
        open_tensors(tmp_path)


@pytest.mark.fault(25)
def test_tensor_in_two_shards(tmp_path):
    write_shards(tmp_path, {A: {"x": ONE}, B: {"x": ONE, "y": ONE}}, {"x": A, "y": B})
    with refused(r"/b\.safetensors: tensor 'x' is in a\.safetensors as well"):
        open_tensors(tmp_path)


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"index\.json: not JSON"),
        ("[]", r"index\.json: a JSON list, expected an object"),
        ("{}", r"index\.json: weight_map None, expected an object"),
        ('{"weight_map":{"x":"a","x":"b"}}', "'x' occurs twice"),
    ],
)
def test_unreadable_index(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with refused(message):
        open_tensors(tmp_path)


@pytest.mark.fault(25)
@pytest.mark.parametrize("shards", [False, True])
def test_a_link_out_of_the_folder_shows_nothing_of_what_is_no_safetensors(
    tmp_path, shards
):
    """The hub's cache is made of links, so they are followed; the file is checked."""
    secret = tmp_path / "secret.txt"
    secret.write_text("password: " + "x" * 90)
    folder = tmp_path / "model"
    folder.mkdir()
    name = A if shards else "model.safetensors"
    if shards:
        index = {"weight_map": {"x": A}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for target, message in (
        (secret, r"100 bytes, too few for a header"),
        ("/dev/zero", "no such file|neither model"),  # it would never end
        (tmp_path / "nowhere", "no such file|neither model"),
    ):
        (folder / name).symlink_to(target)
        with refused(message) as error:
            open_tensors(folder)
        assert "password" not in str(error.value)
        (folder / name).unlink()


@pytest.mark.fault(25)
def test_one_broken_shard_loads_nothing(tmp_path):
    write_shards(tmp_path, {A: {"x": ONE}, B: {"y": ONE}})
    with open(tmp_path / B, "r+b") as file:
        file.truncate((tmp_path / B).stat().st_size - 1)
    with refused(r"/b\.safetensors: .*tensor 'y' ends: truncated"):
        open_tensors(tmp_path)


def test_index_and_another_single_file(tmp_path):
    write_shards(tmp_path, {A: {"x": ONE}})
    save_file({"x": ONE}, tmp_path / "model.safetensors")
    with refused(r"/model\.safetensors: not in model\.safetensors\.index\.json"):
        open_tensors(tmp_path)


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "file",
    [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "model.pkl",
    ],
)
def test_pickles_are_refused(tmp_path, file):
    # Unpickled, this would make a file: os.system("touch ...").
    made = tmp_path / "made"
    (tmp_path / file).write_bytes(f"cos\nsystem\n(S'touch {made}'\ntR.".encode())
    with refused(f"only as pickles .*{file}.*unpickling runs code.*save_pretrained"):
        open_tensors(tmp_path)
    assert not made.exists()


def test_no_weights_at_all(tmp_path):
    with refused(r"neither model\.safetensors nor model\.safetensors\.index\.json: "):
        open_tensors(tmp_path)
    with refused("/none: no such folder"):
        open_tensors(tmp_path / "none")
    (tmp_path / "model.safetensors").mkdir()
    with refused(r"neither model\.safetensors"):
        open_tensors(tmp_path)


@pytest.mark.fault(26)
def test_pickles_of_a_trainer_are_no_weights(tmp_path):
    save_file({"w": ONE}, tmp_path / "model.safetensors")
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02")
    assert_same(open_tensors(tmp_path).read("w"), ONE)


def test_config(tmp_path):
    config = {"model_type": "llama", "limit": [0.0, float("inf")], "auto_map": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    del config["auto_map"]
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    "text, message",
    [
        ("{'a': 1}", r"not JSON \(Expecting property name .* line 1 column 2"),
        ("3", "a JSON int, expected an object"),
        ('{"a": 1, "a": 2}', r"not JSON \('a' occurs twice"),
        (" " * 10_000_001, "more than 10000000 bytes"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_broken_config(tmp_path, file, text, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(text)
    with refused(rf"/{re.escape(file)}: {message}"):
        read_config(tmp_path)


def test_no_config(tmp_path):
    with refused(r"/config\.json: no such file"):
        read_config(tmp_path)


@pytest.mark.fault(26)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint(tmp_path, file):
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    code = {"AutoModelForCausalLM": "evil.Model"}
    (tmp_path / file).write_text(json.dumps({"model_type": "x", "auto_map": code}))
    with refused(rf"/{re.escape(file)}: auto_map .*evil\.Model.*never run"):
        read_config(tmp_path)
    assert read_config(tmp_path, ignore_remote_code=True) == {"model_type": "x"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache that holds org/name, with files that are links, and no network."""
    root = tmp_path / "cache"
    repository = root / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_file({"w": ONE}, repository / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", "0" * 40])
def test_hub_id_from_the_cache(cache, revision):
    folder = resolve("org/name", revision=revision)
    assert folder == cache
    assert_same(open_tensors(folder).read("w"), ONE)


@pytest.mark.parametrize(
    "name, revision, message",
    [
        ("org/other", None, r"org/other: no such folder, and not found on the hub or "),
        ("other", None, "other: no such folder, and not found on the hub or in its"),
        ("org/name", "v2", r"org/name: .*not found on the hub at revision 'v2'"),
        ("no/such/folder", None, "no/such/folder: no such folder, and no hub id"),
        ("./name", None, r"\./name: no such folder, and no hub id"),
    ],
)
def test_neither_a_folder_nor_on_the_hub(cache, name, revision, message):
    with refused(message):
        resolve(name, revision=revision)


def test_a_folder_comes_before_the_hub(cache, tmp_path):
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    assert resolve("org/name") == Path("org/name")
    with refused("org/name: a folder here has no revision 'main'"):
        resolve("org/name", revision="main")
    (folder / "config.json").write_text("{}")
    with refused(r"config\.json: a file: name the folder"):
        resolve(folder / "config.json")


def test_what_is_downloaded(monkeypatch, tmp_path):
    """The hub's own filter lets weights, JSON and tokenizers pass; no pickles, code."""
    asked = {}
    download = lambda name, **options: asked.update(options, name=name) or str(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name", revision="v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    wanted = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
    ]
    unwanted = ["pytorch_model.bin", "m.pt", "modeling_x.py", "fp16/model.safetensors"]
    passed = huggingface_hub.utils.filter_repo_objects(
        wanted + unwanted,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(passed) == wanted


@pytest.mark.fault(25)
def test_memory_of_one_tensor_at_a_time(tmp_path):
    """60 MB in two shards of three tensors: never more than one of them in memory."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is measured where Linux tells it")
    shard = {name: np.ones(10_000_000, np.uint8) for name in "abc"}
    second = {name.upper(): x for name, x in shard.items()}
    write_shards(tmp_path, {A: shard, B: second})
    code = f"""
from rlhf_jax.models.hf.files import open_tensors

def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(file.read().split("VmHWM:")[1].split()[0])

open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = peak()
files = open_tensors({str(tmp_path)!r})
for name in files.specs:
    array = files.read(name)
    assert array.sum() == array.size
    del array
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # The kernel counts roughly; far less would mean that nothing was measured.
    assert 9_000_000 < int(run.stdout) < 14_000_000
