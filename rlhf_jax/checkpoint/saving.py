"""Writing checkpoints: Orbax the arrays, then the hashes, then the name."""

import json
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from rlhf_jax.checkpoint.folder import SAVING, clean, delete, saved_steps
from rlhf_jax.checkpoint.leaves import described, named, nested
from rlhf_jax.checkpoint.manifest import CheckpointError, write_manifest


def _context() -> ocp.Context:
    context = ocp.Context()
    # Weights hardly compress: five times the seconds for 7 % fewer bytes.
    context.array.saving.use_compression = False
    # Nobody waits for a folder that a full disk has no room for.
    context.asynchronous.create_directories_asynchronously = False
    return context


class Saving:
    """A checkpoint on its way to the disk; see `start_save`."""

    def __init__(self, finish: Any):
        self._error: Exception | None = None

        def run():
            try:
                finish()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the checkpoint is complete on disk.

        Raises:
          CheckpointError: it could not be written; the earlier ones are as they were.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error


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
        step that is not above the latest, keep < 1, or no room on the disk (with the
        bytes needed and free; earlier checkpoints stay).

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from rlhf_jax.checkpoint import restore
    >>> directory = tempfile.mkdtemp()
    >>> save(directory, 3, {"w": jnp.ones(2)}, host_state={"kl_coef": 0.1}, keep=1)
    >>> state, host_state, step = restore(directory, {"w": jnp.zeros(2)})
    >>> state["w"].tolist(), host_state["kl_coef"], step
    ([1.0, 1.0], 0.1, 3)
    """
    start_save(directory, step, state, host_state=host_state, keep=keep).wait()


def start_save(
    directory: str | Path,
    step: int,
    state: Any,
    *,
    host_state: Mapping[str, Any],
    keep: int,
) -> Saving:
    """Begins to save a checkpoint; a thread writes it while training goes on.

    No reference. When it returns, the arrays are the caller's again: they may be
    donated to the next step. One at a time: wait for it before the next one.

    Args:
      directory: see `save`, as for the rest.
      step: number of the checkpoint.
      state: pytree of arrays.
      host_state: JSON-able.
      keep: how many checkpoints stay.

    Returns:
      What to ``wait()`` for.

    Raises:
      CheckpointError: see `save`; what goes wrong later is raised by ``wait()``.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> directory = tempfile.mkdtemp()
    >>> saving = start_save(directory, 3, {"w": jnp.ones(2)}, host_state={}, keep=1)
    >>> saving.wait()
    """
    directory = Path(directory).absolute()
    if keep < 1:
        raise CheckpointError(f"keep={keep}: keep at least 1 checkpoint")
    if (steps := saved_steps(directory)) and step <= steps[-1]:
        raise CheckpointError(
            f"{directory}: step {step} is not above the latest saved step {steps[-1]}: "
            f"restore that one, or choose another directory"
        )
    leaves, arrays, keys = named(state)
    host_state = _as_json(host_state)
    half, first = directory / f"{SAVING}{step}", jax.process_index() == 0
    size = sum(x.nbytes for x in arrays.values())
    unix_s = time.time()
    try:
        if first:
            directory.mkdir(parents=True, exist_ok=True)
            clean(directory)
            _check_room(directory, size)
        with _context():
            written = ocp.save_async(str(half), nested(arrays))
    except Exception as error:
        raise _failed(directory, step, size, error) from error

    def finish() -> None:
        try:
            written.result()
            if first:
                write_manifest(
                    half,
                    step=step,
                    host_state=host_state,
                    leaves=described(leaves),
                    keys=keys,
                    unix_s=unix_s,
                )
                half.rename(directory / str(step))
        except Exception as error:
            if first:
                clean(directory)
            raise _failed(directory, step, size, error) from error
        if first:
            for old in saved_steps(directory)[:-keep]:
                delete(directory, old)

    return Saving(finish)


def _check_room(directory: Path, size: int) -> None:
    if shutil.disk_usage(directory).free < size:
        raise OSError("no space left on device")


def _failed(directory: Path, step: int, size: int, error: Exception) -> CheckpointError:
    free = shutil.disk_usage(directory).free if directory.is_dir() else 0
    reason = str(error).split("\n")[0] or type(error).__name__
    if len(reason) > 120:
        reason = f"… {reason[-118:]}"  # the cause stands at the end
    return CheckpointError(
        f"{directory}, step {step}: cannot be saved ({reason}): it needs {size:,} "
        f"bytes and {free:,} are free; make room, or lift a limit on the size of "
        "files, and resume from the checkpoint before"
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
