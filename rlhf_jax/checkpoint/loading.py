"""Reading checkpoints, each file compared with its hash before."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from rlhf_jax.checkpoint.folder import (
    clean,
    put_aside,
    put_aside_before,
    saved_steps,
)
from rlhf_jax.checkpoint.leaves import (
    Leaves,
    check_same,
    described,
    flat,
    named,
    nested,
)
from rlhf_jax.checkpoint.manifest import (
    CheckpointError,
    DamagedError,
    Manifest,
    NoneSoundError,
    verify,
)


class Restored(NamedTuple):
    """A state as it was saved."""

    state: Any
    host_state: dict[str, Any]
    step: int


def restore(directory: str | Path, like: Any, *, step: int | None = None) -> Restored:
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
      DamagedError: a file is not what was saved; names it.

    >>> import jax.numpy as jnp
    >>> restore("no/run", {"w": jnp.ones(2)})
    Traceback (most recent call last):
    rlhf_jax.checkpoint.manifest.CheckpointError: no/run: no complete checkpoint: ...
    """
    return restore_verified(directory, verify(directory, _which(directory, step)), like)


def restore_verified(directory: str | Path, manifest: Manifest, like: Any) -> Restored:
    """`restore` of a checkpoint that was hashed a moment ago. No reference.

    Args:
      directory: where the checkpoints of one run lie.
      manifest: of the checkpoint.
      like: see `restore`.

    Raises:
      CheckpointError: see `restore`.
    """
    expected = named(like).leaves
    where = f"{directory}, step {manifest.step}"
    check_same(where, manifest.leaves, described(expected))
    leaves = _load(directory, manifest, expected)
    state = jax.tree.unflatten(jax.tree.structure(like), [leaves[n] for n in expected])
    return Restored(state, manifest.host_state, manifest.step)


def restore_latest_valid(
    directory: str | Path, like: Any
) -> tuple[Restored | None, list[str]]:
    """Restores the latest checkpoint that is as it was saved. No reference.

    For the process that owns the directory, see `latest_sound`.

    Args:
      directory: where the checkpoints of one run lie, or where nothing is.
      like: see `restore`.

    Returns:
      What was restored, None where there never was a checkpoint; and what is wrong with
      each damaged one, a line each.

    Raises:
      NoneSoundError: there are checkpoints, all damaged (steps and reasons; none is
        renamed).
      CheckpointError: the sound one is of another state than ``like``.

    >>> import jax.numpy as jnp
    >>> restore_latest_valid("no/run", {"w": jnp.ones(2)})
    (None, [])
    """
    manifest, damaged = latest_sound(directory)
    if manifest is None:
        return None, damaged
    return restore_verified(directory, manifest, like), damaged


def latest_sound(directory: str | Path) -> tuple[Manifest | None, list[str]]:
    """Finds the latest checkpoint that is as it was saved. No reference.

    For the process that owns the directory: what others left half done there is
    deleted, and damaged checkpoints above the sound one are renamed to
    ``<step>.damaged``; nothing of them is deleted.

    Args:
      directory: where the checkpoints of one run lie, or where nothing is.

    Returns:
      Its manifest, None where there never was a checkpoint; and what is wrong with each
      damaged one, a line each.

    Raises:
      NoneSoundError: there are checkpoints, all damaged (steps and reasons; none is
        renamed).

    >>> latest_sound("no/run")
    (None, [])
    """
    directory = Path(directory)
    clean(directory)
    damaged: dict[int, str] = {}
    for step in reversed(saved_steps(directory)):
        try:
            manifest = verify(directory, step)
        except DamagedError as error:
            damaged[step] = str(error)
            continue
        for other in damaged:
            put_aside(directory, other)
        return manifest, list(damaged.values())
    earlier = [f"{name}: damaged" for name in put_aside_before(directory)]
    if damaged or earlier:
        reasons = "; ".join([*damaged.values(), *earlier])
        raise NoneSoundError(
            f"{directory}: no sound checkpoint is left: {reasons}: bring back a copy, "
            "or start afresh"
        )
    return None, []


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
      DamagedError: a file is not what was saved; names it.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from rlhf_jax.checkpoint import save
    >>> directory = tempfile.mkdtemp()
    >>> state = {"params": {"w": jnp.ones(2)}, "opt_state": jnp.zeros(9)}
    >>> save(directory, 3, state, host_state={}, keep=1)
    >>> restore_params(directory)
    {'w': Array([1., 1.], dtype=float32)}
    """
    step = _which(directory, step)
    manifest = verify(directory, step)
    inside = f"{path}/"
    if not any(name.startswith(inside) for name in manifest.leaves):
        tops = sorted({name.split("/")[0] for name in manifest.leaves})
        raise CheckpointError(
            f"{directory}, step {step}: nothing at {path!r}: choose a path below {tops}"
        )
    chosen = {name: None for name in manifest.leaves if name.startswith(inside)}
    leaves = _load(directory, manifest, chosen)
    return nested({name.removeprefix(inside): x for name, x in leaves.items()})


def _which(directory: str | Path, step: int | None) -> int:
    steps = saved_steps(directory)
    if not steps:
        raise CheckpointError(
            f"{directory}: no complete checkpoint: check the path, or start the run "
            f"without --resume"
        )
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory}: no step {step}: choose one of {steps}")
    return steps[-1] if step is None else step


def _load(directory: str | Path, manifest: Manifest, likes: Leaves) -> Leaves:
    """The leaves that ``likes`` names, on the devices of its arrays."""
    folder = str(Path(directory).absolute() / str(manifest.step))
    try:
        saved = flat(ocp.metadata(folder).metadata)
        targets = {
            name: _target(likes[name], x) if name in likes else ...
            for name, x in saved.items()
        }
        loaded = flat(ocp.load(folder, nested(targets)))
    except Exception as error:
        raise DamagedError(
            f"{directory}, step {manifest.step}: cannot be read ({error})"
        ) from error
    return {
        name: jax.random.wrap_key_data(loaded[name], impl=manifest.keys[name])
        if name in manifest.keys
        else loaded[name]
        for name in likes
    }


def _target(like: Any, saved: Any) -> Any:
    """What Orbax shall make: numpy for numpy, else a jax array on like's devices.

    Without any, where new arrays are made (``jax.default_device``).
    """
    if isinstance(like, np.ndarray):
        return np.empty(saved.shape, saved.dtype)
    sharding = None if like is None else like.sharding
    sharding = sharding or jax.device_put(np.zeros(())).sharding  # jnp would compile
    return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)
