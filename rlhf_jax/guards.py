"""Guards of a run: updates that were skipped, losses that jump, states that may not be
saved.

A step skips an update whose loss or gradient is not finite, and says so in the metric
``optim/skipped``; here the host reads that, writes it down and stops in time.
"""

import dataclasses
import json
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import gathered
from rlhf_jax.processes import is_first
from rlhf_jax.types import Array, Metrics

FAULTS_FILE = "faults.jsonl"
WINDOW, LEAST = 50, 10  # losses that a spike is measured by, and how many at least
_SHOWN = 8  # rows that a message names
_ALMOST = 1e-6  # shares add up to whole numbers but for rounding


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What stops a run whose losses or gradients are not finite.

    Raises:
      UserError: a value out of range; the message names the option.

    >>> GuardConfig(max_skipped=0)
    Traceback (most recent call last):
    rlhf_jax.errors.UserError: guard.max_skipped = 0: expected 1 or more
    """

    max_skipped: int = 5
    """Faults in a row that stop the run: steps whose update was skipped, or spikes."""
    spike: float | None = None
    """A loss above this many times the median of the last 50 is a fault, too; none
    looks for none."""

    def __post_init__(self):
        if self.max_skipped < 1:
            raise UserError(
                f"guard.max_skipped = {self.max_skipped}: expected 1 or more"
            )
        if self.spike is not None and not 1 < self.spike < math.inf:
            raise UserError(
                f"guard.spike = {self.spike}: expected more than 1, or none"
            )


class Guard:
    """Watches the steps of a run, one after the other. No reference.

    A fault is written to ``faults.jsonl`` of the run directory and to stderr, of
    several processes by the first. A step of several updates counts as the share of
    them that was skipped.

    Args:
      directory: the run directory.
      config: when to stop.
      restored_step: the step of the restored checkpoint: faults of later steps are
        deleted, as those steps are made again. None: there are none yet.
      loss: the metric in which spikes are looked for.
      name_rows: makes names of rows from their numbers, such as file and line; None:
        numbers are all there is.

    Raises:
      UserError: spikes are asked for, and there is no loss.

    >>> import tempfile
    >>> guard = Guard(tempfile.mkdtemp(), GuardConfig(max_skipped=1),
    ...     restored_step=None)
    >>> skipped = {"sft/loss": (jnp.nan, 4), "optim/skipped": (1, 1)}
    >>> guard.check(7, Metrics.of(skipped), rows=np.array([3, 0]))
    Traceback (most recent call last):
    rlhf_jax.errors.UserError: step 7, rows 3, 0: sft/loss = nan, update skipped: ...
    """

    def __init__(
        self,
        directory: str | Path,
        config: GuardConfig,
        *,
        restored_step: int | None,
        loss: str | None = None,
        name_rows: Callable[[Sequence[int]], list[str]] | None = None,
    ):
        if config.spike is not None and loss is None:
            raise UserError(
                f"guard.spike = {config.spike}: there is no one loss to watch here; "
                "leave it out"
            )
        self._path, self._config = Path(directory) / FAULTS_FILE, config
        self._loss, self._name_rows = loss, name_rows
        self._losses: deque[float] = deque(maxlen=WINDOW)
        kept = _kept(self._path, restored_step)
        self.skipped = sum(fault.skipped for fault in kept)
        self._in_a_row = 0.0
        if kept and kept[-1].step == restored_step:
            self._in_a_row = kept[-1].in_a_row

    def check(
        self,
        step: int,
        metrics: Metrics,
        *,
        rows: Any,
        scores: Any = None,
        stop: bool = True,
    ) -> None:
        """Looks at a step, which must be done: it waits for its numbers.

        Args:
          step: its number.
          metrics: what it returned.
          rows: int array, the numbers of its rows; looked at in a fault alone.
          scores: float array, as many for each row or for each of as many completions
            of it, in order; those that are not finite are named. None: there are none.
          stop: False writes a fault down and goes on.

        Raises:
          UserError: it is the last of ``max_skipped`` faults in a row.
        """
        skipped, updates, loss = self._numbers(metrics)
        spike = self._spike(loss)
        if not skipped and spike is None:
            self._in_a_row = 0.0
            return
        self.skipped += int(skipped)
        self._in_a_row += skipped / updates if skipped else 1.0
        fault: dict[str, Any] = {"step": step} | self._rows(rows)
        fault |= {"skipped": int(skipped), "updates": int(updates)}
        fault["in_a_row"] = round(self._in_a_row, 6)
        if found := not_finite(metrics):
            fault["not_finite"] = {name: _json(x) for name, x in found.items()}
        if scores is not None and (wrong := self._wrong_scores(rows, scores)):
            fault["scores"] = wrong
        if spike is not None:
            fault["spike"] = spike
        message, first = _message(fault), is_first()
        if first:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fault) + "\n")
        if stop and self._in_a_row > self._config.max_skipped - _ALMOST:
            raise UserError(
                f"{message}: {fault['in_a_row']:g} in a row, see {self._path}; look at "
                "these rows or lower the learning rate; --resume goes on from the last "
                "checkpoint"
            )
        if first:
            print(f"warning: {message}; see {self._path}", file=sys.stderr)

    def _numbers(self, metrics: Metrics) -> tuple[float, float, float]:
        """(updates that were skipped, updates, the loss that is watched or NaN)."""
        watched = None if self._config.spike is None else self._loss
        names = {"optim/skipped", watched} & metrics.sums.keys()
        of = lambda values: {name: values[name] for name in names}
        sums, counts = jax.device_get((of(metrics.sums), of(metrics.counts)))
        skipped, updates, loss = 0.0, 1.0, math.nan
        if "optim/skipped" in sums:
            skipped, updates = sums["optim/skipped"], counts["optim/skipped"]
        if watched in sums and counts[watched]:
            loss = sums[watched] / counts[watched]
        return float(skipped), float(updates), float(loss)

    def _spike(self, loss: float) -> dict[str, Any] | None:
        """The loss and the median of those before it, if it is far above that."""
        if self._config.spike is None or not math.isfinite(loss):
            return None
        enough = len(self._losses) >= LEAST
        median = statistics.median(self._losses) if enough else math.inf
        self._losses.append(loss)
        if 0 < median and loss > self._config.spike * median:
            return {str(self._loss): loss, "median": median}
        return None

    def _rows(self, rows: Any) -> dict[str, list]:
        # In their order, each once: a prompt may have several completions.
        numbers = list(dict.fromkeys(np.ravel(gathered(rows)).tolist()))
        if self._name_rows is None:
            return {"rows": numbers}
        return {"rows": numbers, "origins": self._name_rows(numbers)}

    def _wrong_scores(self, rows: Any, scores: Any) -> list[dict[str, Any]]:
        values = np.ravel(gathered(scores))
        numbers = np.ravel(gathered(rows))
        if numbers.size == 0 or values.size % numbers.size:
            return []
        numbers = np.repeat(numbers, values.size // numbers.size)
        pairs = zip(numbers.tolist(), values.tolist(), strict=True)
        return [{"row": r, "score": _json(x)} for r, x in pairs if not math.isfinite(x)]


def not_finite(metrics: Metrics) -> dict[str, float]:
    """The metrics that are NaN or infinite, other than means over nothing.

    No reference.

    Args:
      metrics: of a step.

    Returns:
      {name: value}, by name.

    >>> not_finite(Metrics.of({"a": (0.0, 0), "b": (jnp.inf, 2), "c": (1.0, 2)}))
    {'b': inf}
    """
    values = metrics.compute()
    known = {name for name, x in jax.device_get(metrics.sums).items() if np.isfinite(x)}
    return {
        name: values[name]
        for name in sorted(values)
        if name not in known and not math.isfinite(values[name])
    }


@jax.jit
def _finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def all_finite(tree: Any) -> bool:
    """Whether no number of a pytree is NaN or infinite. No reference.

    Args:
      tree: of arrays; integers, booleans and PRNG keys always are.

    Returns:
      One bool for all leaves; the devices look, and the host waits for them.

    >>> all_finite({"w": jnp.ones(3), "n": jnp.array(1)}), all_finite([jnp.inf])
    (True, False)
    """
    return not first_not_finite(tree)


def first_not_finite(tree: Any) -> str | None:
    """The path of the first leaf with a number that is NaN or infinite, or None.

    No reference.

    >>> first_not_finite({"params": {"w": jnp.array([1.0, jnp.nan])}})
    'params/w'
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }
    if not leaves:
        return None
    finite = gathered(_finite(list(leaves.values())))
    names = (name for name, fine in zip(leaves, finite, strict=True) if not fine)
    return next(names, None)


def check_finite(tree: Any, step: int) -> None:
    """Refuses a state that must not be saved. No reference.

    Args:
      tree: the state.
      step: its number.

    Raises:
      UserError: a number in it is NaN or infinite; names the leaf.

    >>> check_finite({"params": {"w": jnp.array([jnp.nan])}}, 3)
    Traceback (most recent call last):
    rlhf_jax.errors.UserError: step 3: params/w is not finite, not saved: ...
    """
    if (name := first_not_finite(tree)) is not None:
        raise UserError(
            f"step {step}: {name} is not finite, not saved: earlier checkpoints are as "
            "they were; go on from the last one with a lower learning rate"
        )


class _Kept(NamedTuple):
    """What of a fault a resumed run needs."""

    step: int
    skipped: int
    in_a_row: float


def _kept(path: Path, restored_step: int | None) -> list[_Kept]:
    """The faults until the restored step; the file has no others afterwards."""
    if not path.exists():
        return []
    kept, lines = [], []
    # A last line without its end, which a killed process leaves, does not count.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            fault = json.loads(line)
            known = _Kept(*(fault[name] for name in _Kept._fields))
            if restored_step is not None and known.step <= restored_step:
                kept.append(known)
                lines.append(line + "\n")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{number}: not a line of faults: {line[:60]!r}: remove it"
            ) from error
    if is_first():
        half = path.with_name(f".{path.name}.half")
        half.write_text("".join(lines), encoding="utf-8")
        half.replace(path)
    return kept


def _message(fault: dict[str, Any]) -> str:
    """One line: the step, its rows, and what is wrong."""
    rows = [str(row) for row in fault.get("origins", fault["rows"])]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    where = f"step {fault['step']}, rows {', '.join(rows[:_SHOWN])}{more}"
    found = fault.get("not_finite", {})
    wrong = [f"{name} = {float(x):g}" for name, x in list(found.items())[:_SHOWN]]
    wrong += [
        f"score {float(s['score']):g} of row {s['row']}"
        for s in fault.get("scores", [])[:_SHOWN]
    ]
    if fault["skipped"] and fault["updates"] == 1:
        wrong.append("update skipped")
    elif fault["skipped"]:
        wrong.append(f"{fault['skipped']} of {fault['updates']} updates skipped")
    if "spike" in fault:
        (name, loss), (_, median) = fault["spike"].items()
        wrong.append(f"{name} = {loss:g} after a median of {median:g}")
    return f"{where}: {', '.join(wrong)}"


def _json(value: float) -> float | str:
    """JSON has no NaN: "NaN", "Infinity" and "-Infinity" are strings."""
    return value if math.isfinite(value) else json.dumps(value).strip('"')
