"""What a stage shows and writes: its plan, its bar, metrics, tokens a second."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from experiments.runs import RunConfig
from experiments.watching import Watch
from rlhf_jax import processes
from rlhf_jax.data import Loader
from rlhf_jax.guards import FAULTS_FILE, Guard
from rlhf_jax.models import TransformerConfig
from rlhf_jax.ops.fused_logprobs import CHUNK
from rlhf_jax.parallel import Where, batch_parts
from rlhf_jax.placement import held_size
from rlhf_jax.sampling import RolloutMeter
from rlhf_jax.terminal import memory_estimate, print_plan, progress
from rlhf_jax.tracking import MetricsLogger
from rlhf_jax.types import Array, Metrics
from rlhf_jax.watchdog import step_made


def count_params(tree: Any) -> int:
    """Number of parameters of a tree of arrays; an array that is there twice is one."""
    return sum({id(x): x.size for x in jax.tree.leaves(tree)}.values())


def count_held(tree: Any, devices: Where) -> int:
    """Number of those parameters that each device holds."""
    if isinstance(devices, Mesh):
        return held_size(tree, devices)
    return count_params(tree)


def show_plan(
    title: str,
    model: TransformerConfig,
    *,
    trained: Any,
    frozen: Any,
    steps: int,
    rows: int,
    length: int,
    micro_batches: int,
    devices: Where,
) -> None:
    """Prints what is going to run, with an estimate of the memory a device needs.

    Args:
      title: the stage and what it learns from.
      model: the network.
      trained: its parameters under training.
      frozen: all others that are there.
      steps: updates in all.
      rows: of an update.
      length: columns of a row.
      micro_batches: parts that an update is computed in.
      devices: what it runs on.
    """
    memory = memory_estimate(
        trained=count_held(trained, devices),
        frozen=count_held(frozen, devices),
        tokens=rows * length // (batch_parts(devices) * micro_batches),
        length=length,
        d_model=model.d_model,
        layers=model.n_layers,
        heads=model.n_heads,
        vocab_size=min(model.vocab_size, CHUNK),  # logits are there in slices
        itemsize=4 if model.dtype == "float32" else 2,
    )
    print_plan(
        title,
        parameters=count_params(trained),
        steps=steps,
        tokens_per_step=rows * length,
        devices=list(devices.devices.flat) if isinstance(devices, Mesh) else devices,
        memory=memory,
        mesh=devices.shape if isinstance(devices, Mesh) else {},
    )


def due(step: int, every: int, total: int) -> bool:
    """Whether something that is done every so many steps, and at the end, is now."""
    return step % every == 0 or step == total


class Watched(NamedTuple):
    """A step that the guard has not seen yet."""

    step: int
    metrics: Metrics
    rows: Any
    scores: Any


class RunLog:
    """A stage's lines of metrics, and the numbers beside its bar; see `run_log`.

    What a step found is read when the next one is under way, so that the devices do not
    wait for the host to have read it: of every step whether its update was skipped, of
    those that have a line all of it.
    """

    def __init__(
        self,
        logger: MetricsLogger,
        advance: Callable[..., None],
        shown: Mapping[str, str],
        is_due: Callable[[int], bool],
        guard: Guard,
        loader: Loader,
        watch: Watch | None = None,
    ):
        self.show = functools.partial(advance, steps=0)
        self._logger, self._advance, self._shown = logger, advance, shown
        self._is_due, self._meter, self._guard = is_due, TokenMeter(), guard
        self._loader, self._watch = loader, watch
        self._numbers = dict.fromkeys([*shown, "tok/s"], float("nan"))
        self._line: tuple[int, Metrics, dict[str, float]] | None = None
        self._watched: Watched | None = None

    @property
    def pending(self) -> bool:
        """Whether the last step has a line, which is not written yet."""
        return self._line is not None

    def add(
        self,
        step: int,
        metrics: Metrics,
        *,
        tokens: int | Array,
        rows: Any = None,
        scores: Any = None,
    ) -> None:
        """A step is under way; its line, if one is due, is written with the next.

        Args:
          step: its number.
          metrics: what it returns.
          tokens: how many went through it.
          rows: int array, which examples it learns from, for `Guard.check`; none for
            those of the loader's last batch.
          scores: float array of what they scored, if they did.

        Raises:
          UserError: too many of the steps before it, in a row, were faults.
        """
        self.flush()
        self._meter.add(tokens)
        self._line = (step, metrics, {}) if self._is_due(step) else None
        rows = self._loader.rows if rows is None else rows
        self._watched = Watched(step, metrics, rows, scores)
        self._advance(self._numbers)
        step_made(step)

    def also(self, values: Mapping[str, float]) -> None:
        """More numbers for the line that is pending."""
        assert self._line is not None
        self._line[-1].update(values)

    def flush(self, *, stop: bool = True) -> None:
        """Waits for the last step; writes its line, if one is pending; looks at it.

        Raises:
          UserError: it is the last of too many faults in a row, and ``stop``.
        """
        watched, self._watched = self._watched, None
        self._write()
        if watched is not None:
            step, metrics, rows, scores = watched
            given: Any = {"rows": rows, "scores": scores, "stop": stop}
            self._guard.check(step, metrics, **given)

    def _write(self) -> None:
        if self._line is None:
            return
        step, metrics, more = self._line
        found = metrics.compute() | more
        self._line = None
        self._logger.log(step, found, timings={"tokens_per_s": self._meter.rate()})
        if self._watch is not None:
            self._watch.add(step, found)
        self._numbers = {name: found[metric] for name, metric in self._shown.items()}
        self._numbers["tok/s"] = self._meter.last
        self.show(self._numbers)


@contextmanager
def run_log(
    name: str,
    config: RunConfig,
    total: int,
    loader: Loader,
    restored: int | None,
    every: int = 1,
    watch: Watch | None = None,
    **shown: str,
) -> Iterator[RunLog]:
    """The log of a stage; on leaving it, by Ctrl-C too, its last line is written.

    Args:
      name: of the stage, beside the bar.
      config: run directory, trackers and guard.
      total: steps in all.
      loader: of what it learns from.
      restored: the step of the checkpoint that the run goes on from; None for none.
      every: steps between lines of metrics; the last step has one in any case.
      watch: told of every line, where criteria or alarms may end the run.
      **shown: beside the bar: a short name, and the metric that it stands for; spikes
        are looked for in ``loss``.
    """
    run_dir = config.run_dir
    guard = Guard(
        run_dir,
        config.guard,
        restored_step=restored,
        loss=shown.get("loss"),
        name_rows=functools.partial(origins, loader.examples),
    )
    logger = MetricsLogger(run_dir, config.tracking, restored_step=restored)
    with logger, progress(name, total, done=restored or 0) as advance:
        is_due = lambda step: due(step, every, total)
        log = RunLog(logger, advance, shown, is_due, guard, loader, watch)
        try:
            yield log
        finally:
            log.flush(stop=False)
    if guard.skipped:
        print(f"{run_dir}: {guard.skipped} updates were skipped, see {FAULTS_FILE}")


def origins(examples: Sequence[Any], rows: Sequence[int]) -> list[str]:
    """Where rows come from, such as file:line; of a packed row all that share it."""
    found = []
    for row in rows:
        example = examples[row]
        group = example if isinstance(example, list | tuple) else (example,)
        found += [getattr(e, "origin", "") or str(row) for e in group]
    return found


class TokenMeter:
    """Tokens a second between readings; the first one includes compilation."""

    def __init__(self):
        self._since, self._tokens = time.perf_counter(), 0
        self.last = float("nan")

    def add(self, tokens: int | Array) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        """Tokens a second since the last reading."""
        now = time.perf_counter()
        self.last = float(self._tokens) / (now - self._since)
        self._since, self._tokens = now, 0
        return self.last


class ShowRollout:
    """Puts the numbers of a running rollout beside the bar of its stage."""

    def __init__(self):
        self.on: Callable[[dict[str, float]], None] | None = None  # `RunLog.show`

    def report(self) -> Callable[..., None] | None:
        """For ``generate``; None where nobody looks, so that no host is called.

        Nor among several processes: all of them must run the same program.
        """
        seen = sys.stdout.isatty() and processes.count() == 1
        return RolloutMeter(self._show) if seen else None

    def _show(self, numbers: dict[str, float]) -> None:
        if self.on is not None:
            self.on(numbers)
