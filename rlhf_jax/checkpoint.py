"""Checkpoints: a pytree of arrays and a JSON-able host state, exactly as they were.

Orbax writes each checkpoint under a temporary name and renames it when it is complete:
a half-written step is never seen. Leaves are stored under their path in the pytree
(``params/layers_0/kernel``), so that part of a state, such as the params of an earlier
stage, can be read without the code that made the rest.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from rlhf_jax.errors import UserError

Leaves = dict[str, Any]  # path of a leaf, such as "opt_state/0/mu/kernel" -> leaf


class CheckpointError(UserError):
    """What is wrong with a checkpoint and what to do about it."""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(tree: Any) -> Leaves:
    """Leaves by path; Python ints and bools become arrays, which loses nothing."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise CheckpointError(f"{name}: two leaves have this path: rename one")
        if isinstance(leaf, bool | int):
            leaf = jnp.asarray(leaf)
        elif isinstance(leaf, np.generic):
            leaf = np.asarray(leaf)
        elif not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise CheckpointError(
                f"{name}: a leaf of type {type(leaf).__name__} cannot be saved without "
                f"loss: make it an array, or put it into host_state"
            )
        if leaf.size == 0:
            raise CheckpointError(f"{name}: an array of size 0 cannot be saved")
        leaves[name] = leaf
    return leaves


def _by_path(nested: Any) -> Leaves:
    return cast(Leaves, traverse_util.flatten_dict(nested, sep="/"))


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _describe_saved(array: Any, key_impl: str | None) -> str:
    if key_impl is None:
        return _describe(array)
    # A key is stored as its words, which are the last axis.
    return f"{jax.random.key(0, impl=key_impl).dtype}{list(array.shape[:-1])}"


def save(
    directory: str | Path,
    step: int,
    state: Any,
    *,
    host_state: Mapping[str, Any],
    keep: int,
) -> None:
    """Saves a checkpoint and deletes all but the last ``keep``. No reference.

    It returns when the checkpoint is complete on disk.

    Args:
      directory: where the checkpoints of one run lie; made if it is not there.
      step: number of the checkpoint, above all that are there.
      state: pytree of arrays of any dtype, typed PRNG keys included. Static fields
        (``apply_fn``, ``tx`` of a TrainState) are not stored. Python ints and bools are
        stored as arrays.
      host_state: JSON-able: the data loader's state, coefficients, counters.
      keep: how many checkpoints stay, at least 1.

    Raises:
      CheckpointError: a leaf that is no array, a host state that JSON cannot hold, a
        step that is not above the latest, or keep < 1.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> save(directory, 3, {"w": jnp.ones(2)}, host_state={"kl_coef": 0.1}, keep=1)
    >>> state, host_state, step = restore(directory, {"w": jnp.zeros(2)})
    >>> state["w"].tolist(), host_state["kl_coef"], step
    ([1.0, 1.0], 0.1, 3)
    """
    directory = Path(directory).absolute()
    if keep < 1:
        raise CheckpointError(f"keep={keep}: keep at least 1 checkpoint")
    latest = latest_step(directory)
    if latest is not None and step <= latest:
        raise CheckpointError(
            f"{directory}: step {step} is not above the latest saved step {latest}: "
            f"restore that one, or choose another directory"
        )
    leaves = _flatten(state)
    keys = {n: str(jax.random.key_impl(x)) for n, x in leaves.items() if _is_key(x)}
    arrays = {n: jax.random.key_data(x) if n in keys else x for n, x in leaves.items()}
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    last_n: Any = ocp.training.preservation_policies.LatestN(keep)
    with ocp.training.Checkpointer(
        str(directory),
        preservation_policy=last_n,
        cleanup_tmp_directories=True,  # what a killed process left
    ) as checkpointer:
        checkpointer.save(
            step,
            tree,
            force=True,
            custom_metadata={"host_state": _as_json(host_state), "keys": keys},
        )


def _as_json(host_state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        copy = json.loads(json.dumps(host_state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"host_state: not JSON: {error}") from error
    if copy != host_state:
        raise CheckpointError(
            "host_state: JSON would change it: use lists for tuples, strings for keys"
        )
    return copy


def latest_step(directory: str | Path) -> int | None:
    """The latest complete checkpoint of a directory. No reference.

    Args:
      directory: where checkpoints lie, or where nothing is.

    Returns:
      Its step, or None if there is none.

    >>> latest_step("no/such/directory") is None
    True
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        return None
    with ocp.training.Checkpointer(str(directory)) as checkpointer:
        return None if checkpointer.latest is None else checkpointer.latest.step


@contextlib.contextmanager
def _opened(directory: str | Path, step: int | None):
    """Yields checkpointer, step, saved array metadata by path, custom metadata."""
    if latest_step(directory) is None:
        raise CheckpointError(
            f"{directory}: no complete checkpoint: check the path, or start the run "
            f"without --resume"
        )
    with ocp.training.Checkpointer(str(Path(directory).absolute())) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"{directory}: no step {step}: choose one of {steps}")
        saved = checkpointer.metadata(step)
        custom: Any = saved.custom_metadata
        arrays = _by_path(saved.metadata)
        yield checkpointer, step, arrays, custom


def _check_same(where: str, saved: dict[str, str], expected: dict[str, str]) -> None:
    wrong = [
        f"  {name}: saved {saved.get(name, 'nothing')}, "
        f"expected {expected.get(name, 'nothing')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} leaves differ from the state to restore into: "
            "use the configuration of the run that saved it\n" + "\n".join(wrong)
        )


def _target(like: Any, saved: Any) -> Any:
    """What Orbax shall make: numpy for numpy, else a jax array on like's devices."""
    if isinstance(like, np.ndarray):
        return np.empty(saved.shape, saved.dtype)
    sharding = like.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)


def _load(checkpointer: Any, step: int, targets: Leaves, keys: dict[str, str]):
    tree = traverse_util.unflatten_dict(targets, sep="/")
    loaded = _by_path(checkpointer.load(step, tree))
    return {
        name: jax.random.wrap_key_data(x, impl=keys[name]) if name in keys else x
        for name, x in loaded.items()
        if x is not ...
    }


def restore(
    directory: str | Path, like: Any, *, step: int | None = None
) -> tuple[Any, dict[str, Any], int]:
    """Restores a checkpoint, byte for byte, into a state of the same shape.

    No reference. Nothing is cast, dropped or filled in.

    Args:
      directory: where the checkpoints of one run lie.
      like: the state, as concrete arrays (a state just made) or abstract ones
        (``jax.eval_shape``): it gives the structure, the static fields and the
        shardings. Its Python ints and bools come back as arrays.
      step: which checkpoint; None is the latest.

    Returns:
      (state, host_state, step).

    Raises:
      CheckpointError: no such checkpoint, or a leaf is missing, extra or of another
        shape or dtype; every such leaf is listed, saved against expected.

    >>> import tempfile
    >>> restore("no/run", {"w": jnp.ones(2)})
    Traceback (most recent call last):
    rlhf_jax.checkpoint.CheckpointError: no/run: no complete checkpoint: ...
    """
    expected = _flatten(like)
    with _opened(directory, step) as (checkpointer, step, arrays, custom):
        keys = custom["keys"]
        found = {name: _describe_saved(x, keys.get(name)) for name, x in arrays.items()}
        wanted = {name: _describe(x) for name, x in expected.items()}
        _check_same(f"{directory}, step {step}", found, wanted)
        targets = {name: _target(x, arrays[name]) for name, x in expected.items()}
        leaves = _load(checkpointer, step, targets, keys)
    state = jax.tree.unflatten(jax.tree.structure(like), [leaves[n] for n in expected])
    return state, custom["host_state"], step


def restore_params(
    directory: str | Path, path: str = "params", *, step: int | None = None
) -> dict[str, Any]:
    """Restores the part of a state below a path, without knowing the rest.

    No reference. What a stage needs of an earlier one: the params, not the optimizer.

    Args:
      directory: where the checkpoints of one run lie.
      path: of the sub-tree, such as "params" for a TrainState.
      step: which checkpoint; None is the latest.

    Returns:
      Nested dict of jax arrays, byte-equal to what was saved.

    Raises:
      CheckpointError: no such checkpoint, or nothing at that path.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> state = {"params": {"w": jnp.ones(2)}, "opt_state": jnp.zeros(9)}
    >>> save(directory, 3, state, host_state={}, keep=1)
    >>> restore_params(directory)
    {'w': Array([1., 1.], dtype=float32)}
    """
    with _opened(directory, step) as (checkpointer, step, arrays, custom):
        inside = f"{path}/"
        if not any(name.startswith(inside) for name in arrays):
            tops = sorted({name.split("/")[0] for name in arrays})
            raise CheckpointError(
                f"{directory}, step {step}: nothing at {path!r}: choose a path below "
                f"{tops}"
            )
        targets = {
            name: _target(jax.ShapeDtypeStruct(x.shape, x.dtype), x)
            if name.startswith(inside)
            else ...
            for name, x in arrays.items()
        }
        leaves = _load(checkpointer, step, targets, custom["keys"])
    below = {name.removeprefix(inside): x for name, x in leaves.items()}
    return traverse_util.unflatten_dict(below, sep="/")
