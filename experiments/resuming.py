"""Stopping and going on: what a run was given, its state, when that is saved."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.logs import RunLog, due, run_log
from experiments.runs import ResumeConfig, RunConfig
from experiments.stops import came_late, heed_stop
from experiments.watching import Watch
from rlhf_jax import checkpoint, processes
from rlhf_jax.data import Loader
from rlhf_jax.errors import UserError
from rlhf_jax.fingerprint import fingerprint
from rlhf_jax.guards import check_finite
from rlhf_jax.rundir import check_given, create_run_dir
from rlhf_jax.stages import CHECKPOINTS, Stage, stage_fingerprint
from rlhf_jax.stopping import TRY_AGAIN, stop_signals

PACKAGES = ("jax", "flax", "optax")  # whose versions change roundings


def start_run(config: ResumeConfig) -> Path:
    """The run directory, this process's own; see `create_run_dir`.

    Raises:
      SystemExit: see `heed_stop`.
    """
    heed_stop(config.run_dir)
    return create_run_dir(
        config.run_dir, config, resume=config.resume, accept=config.accept
    )


def resume_state(
    config: ResumeConfig,
    state: Any,
    loader: Loader,
    tokenizer: Any,
    **stages: Stage | Callable | None,
) -> tuple[Any, int | None]:
    """(state, step) of the latest sound checkpoint, the loader moved to its place.

    The state as it is and None where there is no checkpoint yet.

    Args:
      config: of the run.
      state: just made.
      loader: of what it learns from.
      tokenizer: of the text.
      **stages: the earlier stages that it begins with, by option; a reward function is
        known by its name, and None is nothing.

    Raises:
      UserError: the run began with other data, another tokenizer or stage; no
        checkpoint is sound; or its leaves are not those of ``state``.
    """
    given = {
        "data": fingerprint(loader.examples),
        "tokenizer": fingerprint([tokenizer.backend_tokenizer.to_str()]),
    }
    for name, stage in stages.items():
        if isinstance(stage, Stage):
            given[name] = stage_fingerprint(stage)
    directory = config.run_dir / CHECKPOINTS
    processes.agree(given)

    def prepare() -> None:
        check_given(config.run_dir, given, accept=config.accept)
        _keep_sound(directory, restart=config.restart)

    processes.by_first(prepare)
    step = checkpoint.latest_step(directory)
    processes.agree({"step of the checkpoint": str(step)})
    if step is None:
        return state, None
    manifest = checkpoint.read_manifest(directory, step)
    restored = checkpoint.restore_verified(directory, manifest, state)
    loader.set_state(restored.host_state["loader"])
    _say_versions(restored.host_state["versions"])
    return restored.state, step


def _keep_sound(directory: Path, *, restart: bool) -> None:
    """What is there afterwards is sound; or nothing is, and the run begins anew."""
    try:
        _, damaged = checkpoint.latest_sound(directory)
    except checkpoint.NoneSoundError as error:
        if not restart:
            raise UserError(f"{error} with --restart") from error
        checkpoint.put_all_aside(directory)
        return
    for line in damaged:
        print(f"warning: {line}: renamed, an earlier one is used", file=sys.stderr)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _say_versions(saved: Mapping[str, str]) -> None:
    now = _versions()
    if changed := [f"{n} {saved[n]} → {now[n]}" for n in now if saved[n] != now[n]]:
        print(
            f"note: {', '.join(changed)} since the checkpoint: the numbers may differ "
            "in rounding from a run that did not stop",
            file=sys.stderr,
        )


AHEAD = 3  # steps by which the slowest process is behind the fastest, at most


def agreed_stop(step: int, asked: str | None) -> str | None:
    """Which signal ends the run at this step, in all processes alike; None for none.

    Each step reads what the one before it has found, so that no process is more than
    two steps ahead of another: all of them hear in time of a stop three steps from now.
    """
    if processes.count() == 1:
        return asked
    if asked:
        processes.tell_once("stop/all", f"{step + AHEAD} {asked}")
    for text in processes.told("stop").values():
        last, signal = text.split()
        return signal if step >= int(last) else None
    return None


class Saves:
    """When a run's state is saved, and how; see `saving`."""

    def __init__(
        self,
        config: ResumeConfig,
        total: int,
        loader: Loader,
        asked: Callable[[], str | None],
        watch: Watch | None = None,
    ):
        self._config, self._total, self._loader = config, total, loader
        self._asked, self._watch = asked, watch
        self._stop: str | None = None  # who asked, once all processes are to stop
        self._running: checkpoint.Saving | None = None

    def due(self, step: int) -> bool:
        """Whether it is time: every so often, at the end, and when asked to stop."""
        self._stop = agreed_stop(step, self._asked())
        ended = self._watch is not None and self._watch.ended is not None
        regular = due(step, self._config.save_every, self._total)
        return regular or ended or bool(self._stop)

    def save(self, step: int, state: Any) -> None:
        """Begins to save; training may go on. If asked to stop, it saves and stops.

        Raises:
          SystemExit: stopped, with the exit code `TRY_AGAIN`.
          UserError: a number in the state is not finite; or it could not be written.
        """
        check_finite(state, step)
        self.wait()  # one at a time
        self._running = checkpoint.start_save(
            self._config.run_dir / CHECKPOINTS,
            step,
            state,
            host_state={"loader": self._loader.get_state(), "versions": _versions()},
            keep=2,
        )
        if step < self._total and self._stop:
            self.wait()
            print(
                f"{self._config.run_dir}: stopped by {self._stop}, saved at "
                f"{step}/{self._total}; the same command with --resume goes on",
                file=sys.stderr,
            )
            raise SystemExit(TRY_AGAIN)

    def wait(self) -> None:
        """Until what was begun is on disk."""
        if self._running is not None:
            running, self._running = self._running, None
            running.wait()


@contextmanager
def saving(
    config: ResumeConfig, total: int, loader: Loader, watch: Watch | None = None
) -> Iterator[Saves]:
    """What saves a run's state; on leaving it, the last checkpoint is on disk.

    Within it SIGTERM and SIGINT are requests to stop, see `stop_signals`. One that came
    too late to stop this run, which is done, stops the next, see `heed_stop`.

    Args:
      config: run directory, and how often.
      total: steps in all.
      loader: whose place is part of the state.
      watch: what may end the run before.
    """
    with stop_signals() as asked:
        saves = Saves(config, total, loader, asked, watch)
        try:
            yield saves
        finally:
            saves.wait()
    if signal := asked():
        came_late(signal)


@contextmanager
def running(
    name: str,
    config: RunConfig,
    total: int,
    loader: Loader,
    restored: int | None,
    every: int = 1,
    watch: Watch | None = None,
    **shown: str,
) -> Iterator[tuple[RunLog, Saves]]:
    """A stage's loop: its log and its saves, see `run_log` and `saving`."""
    with (
        run_log(name, config, total, loader, restored, every, watch, **shown) as log,
        saving(config, total, loader, watch) as saves,
    ):
        yield log, saves
