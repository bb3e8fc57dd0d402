"""A checkpoint that is not what was saved is told, never loaded, never deleted."""

import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults.repeat import repeats
from flax.training.train_state import TrainState

from rlhf_jax import checkpoint
from rlhf_jax.checkpoint import (
    CheckpointError,
    DamagedError,
    restore,
    restore_latest_valid,
    restore_params,
    save,
    start_save,
    verify,
)

LIKE = {"w": jnp.zeros((8, 8)), "key": jax.random.key(0), "n": jnp.int32(0)}


def make(step):
    key = jax.random.key(step)
    return {"w": jax.random.normal(key, (8, 8)), "key": key, "n": jnp.int32(step)}


def content(restored):
    return [
        np.asarray(jax.random.key_data(x) if k == "key" else x).tobytes()
        for k, x in sorted(restored.state.items())
    ] + [json.dumps(restored.host_state), restored.step]


@pytest.fixture
def saved(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, make(step), host_state={"place": step * 10}, keep=3)
    return tmp_path


def files(directory, step):
    found = (directory / str(step)).rglob("*")
    return sorted(p for p in found if p.is_file() and p.stat().st_size)


@pytest.mark.fault(5)
def test_flipped_bits(saved):
    """Detected, or what is loaded is what was saved; by whichever way it is read."""
    whole, rng = content(restore(saved, LIKE)), np.random.default_rng(0)
    detected, tries = 0, repeats(40)
    for _ in range(tries):
        path = rng.choice(np.array(files(saved, 3)))
        before = path.read_bytes()
        flipped = bytearray(before)
        flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            assert content(restore(saved, LIKE)) == whole
        except DamagedError as error:
            assert str(path.relative_to(saved / "3")) in str(error)
            detected += 1
            with pytest.raises(DamagedError):
                restore_params(saved, "w")
        path.write_bytes(before)
    print(f"{detected} of {tries} flips detected, the others harmless")
    assert detected >= 0.9 * tries
    assert content(restore(saved, LIKE)) == whole


def damage(directory, kind):
    """Damages step 3; returns what the error must say."""
    arrays = (p for p in files(directory, 3) if p.name != "manifest.json")
    largest = max(arrays, key=lambda p: p.stat().st_size)
    name, size = largest.relative_to(directory / "3"), largest.stat().st_size
    if kind == "cut":
        largest.write_bytes(largest.read_bytes()[:-5])
        return f"{name}: expected {size:,} bytes, found {size - 5:,}"
    if kind == "empty":
        largest.write_bytes(b"")
        return f"{name}: expected {size:,} bytes, found 0"
    if kind == "missing":
        largest.unlink()
        return f"{name}: expected {size:,} bytes, found none"
    if kind == "half":  # a copy that ended early
        shutil.rmtree(directory / "3" / "state")
        return "expected "
    (directory / "3" / "manifest.json").unlink()
    return "manifest.json: is missing"


@pytest.mark.fault(6)
@pytest.mark.parametrize("kind", ["cut", "empty", "missing", "half", "unlisted"])
def test_the_newest_sound_checkpoint_is_taken(saved, kind):
    before, said = content(restore(saved, LIKE, step=2)), damage(saved, kind)
    for load in (lambda: restore(saved, LIKE), lambda: verify(saved, 3)):
        with pytest.raises(DamagedError) as error:
            load()
        assert f"{saved}, step 3: " in str(error.value) and said in str(error.value)
    left = sorted(p.name for p in (saved / "3").rglob("*"))
    restored, damaged = restore_latest_valid(saved, LIKE)
    assert restored is not None and content(restored) == before
    assert len(damaged) == 1 and said in damaged[0]
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2", "3.damaged"]
    assert sorted(p.name for p in (saved / "3.damaged").rglob("*")) == left
    # The step is made again, and is damaged again: both copies stay.
    save(saved, 3, make(3), host_state={}, keep=3)
    damage(saved, kind)
    restore_latest_valid(saved, LIKE)
    assert (saved / "3.damaged-2").is_dir() and (saved / "3.damaged").is_dir()


@pytest.mark.fault(7)
def test_without_a_sound_checkpoint_nothing_starts(saved):
    for step in (1, 2, 3):
        files(saved, step)[-1].write_bytes(b"")
    for _ in range(2):  # asking again does not make it forget
        with pytest.raises(CheckpointError, match="no sound checkpoint is left") as e:
            restore_latest_valid(saved, LIKE)
        for step in (1, 2, 3):
            assert f"step {step}: " in str(e.value)
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2", "3"]


@pytest.mark.fault(7)
def test_a_damaged_checkpoint_is_not_forgotten(tmp_path):
    save(tmp_path, 1, make(1), host_state={}, keep=1)
    (tmp_path / "1").rename(tmp_path / "1.damaged")
    with pytest.raises(CheckpointError, match="1.damaged"):
        restore_latest_valid(tmp_path, LIKE)


@pytest.mark.fault(12)
def test_a_sound_checkpoint_of_another_state_is_not_damaged(saved):
    with pytest.raises(CheckpointError, match="1 leaves differ") as error:
        restore_latest_valid(saved, LIKE | {"n": jnp.zeros(2)})
    assert "n: saved int32[], expected float32[2]" in str(error.value)
    assert checkpoint.saved_steps(saved) == [1, 2, 3]


@pytest.mark.fault(8)
def test_a_limit_on_the_size_of_files(saved):
    """The checkpoint is larger than a file may be: told with bytes, nothing left."""
    code = f"""
import resource
import jax.numpy as jnp
from rlhf_jax.checkpoint import CheckpointError, save
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save({str(saved)!r}, 4, {{"w": jnp.ones(10**6)}}, host_state={{}}, keep=1)
except CheckpointError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert "step 4: cannot be saved" in run.stdout, run.stderr
    assert "it needs 4,000,000 bytes and " in run.stdout
    assert "File too large" in run.stdout and run.stdout.count("\n") == 1
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2", "3"]
    assert restore(saved, LIKE).step == 3


@pytest.mark.fault(8)
def test_a_full_disk_is_seen_before_anything_is_written(saved, monkeypatch):
    usage = shutil.disk_usage(saved)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="it needs 268 bytes and 100 are free"):
        save(saved, 4, make(4), host_state={}, keep=3)
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2", "3"]


@pytest.mark.fault(8)
def test_a_rename_that_fails_does_not_hang(saved, monkeypatch):
    def refuse(*_):
        raise OSError("no rename here")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="no rename here"):
        save(saved, 4, make(4), host_state={}, keep=3)
    assert time.monotonic() - start < 5
    assert restore(saved, LIKE).step == 3


def test_training_goes_on_while_it_saves(tmp_path):
    """The saved arrays are donated at once; what is saved is what they were."""
    params = {str(i): jnp.full((100, 1000), i) for i in range(10)}
    state = TrainState.create(apply_fn=len, params=params, tx=optax.adam(1.0))
    update = jax.jit(
        lambda s: s.apply_gradients(grads=jax.tree.map(jnp.ones_like, s.params)),
        donate_argnums=0,
    )
    state = jax.block_until_ready(update(state))
    want = jax.device_get(jax.tree.map(np.array, state))
    saving = start_save(tmp_path, 1, state, host_state={}, keep=1)
    for _ in range(5):
        state = update(state)
    saving.wait()
    found = restore(tmp_path, jax.eval_shape(lambda: state)).state
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert np.asarray(x).tobytes() == y.tobytes()


def test_an_error_of_the_thread_is_raised_by_wait(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk gone")

    monkeypatch.setattr("rlhf_jax.checkpoint.saving.write_manifest", fail)
    saving = start_save(tmp_path, 1, make(1), host_state={}, keep=1)
    with pytest.raises(CheckpointError, match="step 1: cannot be saved .disk gone"):
        saving.wait()
    assert list(tmp_path.iterdir()) == []
