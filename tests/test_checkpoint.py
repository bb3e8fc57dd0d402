"""What was saved comes back byte for byte, or the error lists every leaf."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.checkpoint import (
    CheckpointError,
    latest_step,
    restore,
    restore_params,
    save,
)


def make_state(scale: float = 1.0) -> TrainState:
    kernel = scale * jax.random.normal(jax.random.key(1), (4, 3))
    params = {"dense": {"kernel": kernel, "bias": jnp.ones(3, jnp.bfloat16) * scale}}
    schedule = optax.linear_schedule(1e-3, 0.0, 10)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    return TrainState.create(apply_fn=make_state, params=params, tx=tx)


def assert_same(a, b):
    """Structure, dtype and bytes: NaN equals NaN, 0 is not -0."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = jnp.asarray(x), jnp.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def saved(tmp_path):
    save(tmp_path, 3, make_state(), host_state={"n": 1}, keep=2)
    return tmp_path


def test_train_state_comes_back_exactly(tmp_path):
    state = make_state()
    grads = jax.tree.map(jnp.ones_like, state.params)
    state = state.apply_gradients(grads=grads)  # moments and counts are not zero
    save(tmp_path, 7, state, host_state={"kl_coef": 0.1, "loader": [1, None]}, keep=1)
    back, host_state, step = restore(tmp_path, make_state(2.0))
    assert back.apply_fn is make_state
    assert_same(back.params, state.params)
    assert_same(back.opt_state, state.opt_state)
    assert int(back.step) == 1
    assert (host_state, step) == ({"kl_coef": 0.1, "loader": [1, None]}, 7)


def test_abstract_like_restores_the_same(saved):
    abstract = jax.eval_shape(make_state)
    assert_same(restore(saved, abstract)[0].params, make_state().params)


def test_every_kind_of_leaf(tmp_path):
    state = {
        "keys": jax.random.split(jax.random.key(5), 3),
        "key": jax.random.key(6, impl="rbg"),
        "odd": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "flags": (jnp.array([True, False]), [jnp.int8(-3)]),
        "wide": np.array([2**60, 1]),
        "number": np.float64(0.1),
        "count": 5,
        "nothing": None,
    }
    save(tmp_path, 0, state, host_state={}, keep=1)
    back, _, step = restore(tmp_path, state)
    assert step == 0
    wide = back.pop("wide")
    assert wide.dtype == np.int64 and wide.tolist() == [2**60, 1]
    number = back.pop("number")
    assert number.dtype == np.float64 and number == 0.1
    assert_same(back, {k: v for k, v in state.items() if k not in ("wide", "number")})
    # A restored key draws what the saved one would have drawn.
    assert_same(jax.random.bits(back["key"], (4,)), jax.random.bits(state["key"], (4,)))


def test_restores_onto_the_shardings_of_like(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    save(tmp_path, 1, {"w": jnp.arange(8.0)}, host_state={}, keep=1)
    like = {"w": jax.device_put(jnp.zeros(8), split)}
    back, _, _ = restore(tmp_path, like)
    assert back["w"].sharding == split
    np.testing.assert_array_equal(back["w"], np.arange(8.0))


@pytest.mark.fault(12)
def test_mismatches_are_all_listed(saved):
    like = make_state()
    params = {
        "dense": {
            "kernel": jnp.zeros((4, 2)),  # another shape
            "bias": jnp.zeros(3),  # another dtype: must not be cast
            "extra": jnp.zeros(1),
        }
    }
    with pytest.raises(CheckpointError) as error:
        restore(saved, like.replace(params=params, step=None))
    lines = str(error.value).splitlines()
    assert "step 3: 4 leaves differ" in lines[0]
    assert lines[1:] == [
        "  params/dense/bias: saved bfloat16[3], expected float32[3]",
        "  params/dense/extra: saved nothing, expected float32[1]",
        "  params/dense/kernel: saved float32[4, 3], expected float32[4, 2]",
        "  step: saved int32[], expected nothing",
    ]


@pytest.mark.fault(12)
def test_another_key_type_is_a_mismatch(tmp_path):
    save(tmp_path, 1, {"key": jax.random.key(0)}, host_state={}, keep=1)
    with pytest.raises(
        CheckpointError, match=r"key: saved key<fry>\[\], expected key<"
    ):
        restore(tmp_path, {"key": jax.random.key(0, impl="rbg")})
    raw = {"key": jax.random.key_data(jax.random.key(0))}
    with pytest.raises(CheckpointError, match=r"expected uint32\[2\]"):
        restore(tmp_path, raw)


def test_keeps_the_last_n_and_restores_any_of_them(tmp_path):
    for step in (1, 2, 5, 9):
        save(tmp_path, step, {"w": jnp.full(2, step)}, host_state={}, keep=2)
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [5, 9]
    assert latest_step(tmp_path) == 9
    like = {"w": jnp.zeros(2, jnp.int32)}
    assert restore(tmp_path, like)[0]["w"].tolist() == [9, 9]
    assert restore(tmp_path, like, step=5)[0]["w"].tolist() == [5, 5]
    with pytest.raises(CheckpointError, match=r"no step 2: choose one of \[5, 9\]"):
        restore(tmp_path, like, step=2)


@pytest.mark.parametrize("step", [2, 3])
def test_never_overwrites(saved, step):
    with pytest.raises(CheckpointError, match="not above the latest saved step 3"):
        save(saved, step, make_state(), host_state={}, keep=2)


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint(tmp_path, exists):
    directory = tmp_path if exists else tmp_path / "none"
    assert latest_step(directory) is None
    for load in (lambda: restore(directory, {}), lambda: restore_params(directory)):
        with pytest.raises(CheckpointError, match=r"no complete checkpoint: .*resume"):
            load()
    assert directory.exists() == exists


def test_half_written_step_is_never_seen(saved):
    # What a process leaves that is killed while it saves step 4.
    half = saved / ".saving-4"
    shutil.copytree(saved / "3", half)
    assert latest_step(saved) == 3
    assert restore(saved, make_state())[2] == 3
    save(saved, 5, make_state(), host_state={}, keep=2)
    assert sorted(p.name for p in saved.iterdir()) == ["3", "5"]


@pytest.mark.fault(1)
@pytest.mark.parametrize("moment", ["orbax", "hashes", "name", "old", "older"])
def test_killed_while_saving(saved, moment):
    """At any moment there is one complete checkpoint, and the next save cleans up."""
    code = f"""
import os, pathlib, shutil
import jax.numpy as jnp
from orbax.checkpoint._src.path import atomicity
from rlhf_jax.checkpoint import save, saving
def die(*_): os._exit(9)
rename = pathlib.Path.rename
if {moment!r} == "orbax": atomicity.async_path.rename = die
if {moment!r} == "hashes": saving.write_manifest = lambda *_, **__: die()
if {moment!r} == "name": pathlib.Path.rename = die
if {moment!r} == "old": saving.delete = die
if {moment!r} == "older": shutil.rmtree = die
save({str(saved)!r}, 4, {{"w": jnp.ones(2)}}, host_state={{}}, keep=1)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 9, run.stderr
    if moment in ("old", "older"):
        assert restore(saved, {"w": jnp.zeros(2)}).state["w"].tolist() == [1, 1]
    else:
        assert any(p.name.startswith(".saving-4") for p in saved.iterdir())
        assert latest_step(saved) == 3
        assert_same(restore(saved, make_state()).state.params, make_state().params)
    save(saved, 5, make_state(), host_state={}, keep=1)
    assert [p.name for p in saved.iterdir()] == ["5"]


def test_params_alone(saved):
    params = restore_params(saved)
    assert_same(params, make_state().params)
    kernel = restore_params(saved, "opt_state/1/0/mu/dense", step=3)["kernel"]
    np.testing.assert_array_equal(kernel, np.zeros((4, 3)))
    with pytest.raises(CheckpointError, match=r"nothing at 'model': .*'params'"):
        restore_params(saved, "model")


def test_params_alone_unwraps_keys(tmp_path):
    save(tmp_path, 1, {"rng": {"key": jax.random.key(4)}}, host_state={}, keep=1)
    assert_same(restore_params(tmp_path, "rng"), {"key": jax.random.key(4)})


@pytest.mark.parametrize(
    "leaf, what", [(0.5, "float"), ("x", "str"), (np.zeros((0, 2)), "size 0")]
)
def test_leaves_that_would_be_lost(tmp_path, leaf, what):
    with pytest.raises(CheckpointError, match=f"a/b: .*{what}"):
        save(tmp_path, 1, {"a": {"b": leaf}}, host_state={}, keep=1)


def test_two_leaves_with_one_path(tmp_path):
    state = {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}}
    with pytest.raises(CheckpointError, match="a/b: two leaves"):
        save(tmp_path, 1, state, host_state={}, keep=1)


@pytest.mark.parametrize(
    "host_state", [{"x": b"1"}, {"x": float("nan")}, {"x": (1, 2)}, {1: 2}]
)
def test_host_state_that_json_would_change(tmp_path, host_state):
    with pytest.raises(CheckpointError, match="host_state: "):
        save(tmp_path, 1, {"w": jnp.ones(1)}, host_state=host_state, keep=1)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(CheckpointError, match="keep=0"):
        save(tmp_path, 1, {"w": jnp.ones(1)}, host_state={}, keep=0)


def test_quiet(tmp_path):
    code = f"""
import jax.numpy as jnp
from rlhf_jax.checkpoint import restore, restore_params, save
state = {{"params": {{"w": jnp.ones(2)}}}}
for step in (1, 2):
    save({str(tmp_path)!r}, step, state, host_state={{}}, keep=1)
restore({str(tmp_path)!r}, state)
restore_params({str(tmp_path)!r})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
