"""Alarms of reward hacking: what else changes when a policy learns to please a reward.

As with `criteria`, an alarm is a function of the run's metrics so far and of nothing
else. What is compared are means over a window of iterations: the first of the run are
what it began with, the last what it is now.
"""

import bisect
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from rlhf_jax.criteria import Row, Rows
from rlhf_jax.errors import UserError

OnAlarm = Literal["warn", "soften", "stop"]
_SIGMAS = 5.0  # of noise, that the referee falls by at least
_JUDGED = ("objective/referee", "objective/score")


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Which alarms there are, and what is done when one rings.

    Raises:
      UserError: a value out of range; the message names the option.

    >>> AlarmConfig(length=0.5)
    Traceback (most recent call last):
    rlhf_jax.errors.UserError: alarm.length = 0.5: expected more than 1, or none
    """

    on_alarm: OnAlarm = "warn"
    """Says so; or multiplies the KL coefficient, too; or ends the run."""
    factor: float = 2.0
    """What the KL coefficient is multiplied by, for soften."""
    window: int = 5
    """Iterations whose mean is compared with that of the first ones; after an alarm
    there is none for as long."""
    repetition: float | None = 0.1
    """Rise of rollout/repetition, a share; none looks for none, here as below."""
    entropy: float | None = 0.3
    """Share of the entropy a token below which it has collapsed."""
    length: float | None = 2.0
    """Factor by which responses have become longer or shorter."""
    disagreement: float | None = 2.0
    """Factor by which the reward and its referees have come to disagree more."""
    referee: float | None = 0.25
    """Share of its rise by which the referee has fallen from its peak while the score
    has risen on."""

    def __post_init__(self):
        if self.on_alarm not in ("warn", "soften", "stop"):
            raise UserError(
                f"alarm.on_alarm = {self.on_alarm!r}: expected warn, soften or stop"
            )
        if self.window < 1:
            raise UserError(f"alarm.window = {self.window}: expected 1 or more")
        if not 1 < self.factor < math.inf:
            raise UserError(f"alarm.factor = {self.factor}: expected more than 1")
        for name in ("length", "disagreement"):
            if (value := getattr(self, name)) is not None and not 1 < value < math.inf:
                raise UserError(
                    f"alarm.{name} = {value}: expected more than 1, or none"
                )
        for name in ("repetition", "entropy", "referee"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise UserError(
                    f"alarm.{name} = {value}: expected a share above 0, to 1, or none"
                )


class Alarm(NamedTuple):
    """An alarm that has rung."""

    step: int
    kinds: tuple[str, ...]
    text: str  # one line: every kind with what it was and is


def alarms(rows: Rows, config: AlarmConfig) -> list[Alarm]:
    """Every alarm that has rung in these iterations, in order. No reference.

    After one there is none for ``config.window`` iterations.

    Args:
      rows: metrics of every iteration so far, in order; those of which a metric is not
        logged have no such alarm.
      config: thresholds.

    Returns:
      What one process has seen step by step, and what another reads back from
      metrics.jsonl, alike.

    >>> rows = [{"step": i, "rollout/repetition": 0.01 * i**2} for i in range(1, 9)]
    >>> [(alarm.step, alarm.text) for alarm in alarms(rows, AlarmConfig(window=3))]
    [(6, 'repetition 0.257, was 0.0467')]
    """
    listening = Alarms(config)
    for row in rows:
        listening.add(row)
    return listening.rung


class Alarms:
    """`alarms` of a run under way, an iteration at a time. No reference.

    What an iteration takes does not grow with those before it. ``rung`` has all alarms
    so far, in order.

    Args:
      config: thresholds.

    >>> listening = Alarms(AlarmConfig(window=1))
    >>> rows = [{"step": i, "rollout/repetition": i / 5} for i in (1, 2)]
    >>> [alarm and alarm.kinds for alarm in map(listening.add, rows)]
    [None, ('repetition',)]
    """

    def __init__(self, config: AlarmConfig):
        self.rung: list[Alarm] = []
        self._config = config
        self._first: list[Row] = []  # a window of them; and of the last ones
        self._last: deque[Row] = deque(maxlen=config.window)
        self._count = 0
        self._referee = _Referee(config.window)

    def add(self, row: Row) -> Alarm | None:
        """An iteration's metrics, the next ones; the alarm that rings, if one does."""
        window, step = self._config.window, int(row["step"])
        if self._count < window:
            self._first.append(row)
        self._last.append(row)
        self._count += 1
        self._referee.add(row)
        silent = self.rung and step < self.rung[-1].step + window
        if silent or self._count < 2 * window:
            return None
        if not (found := dict(self._ringing())):
            return None
        alarm = Alarm(step, tuple(found), "; ".join(found.values()))
        self.rung.append(alarm)
        return alarm

    def _ringing(self) -> Iterator[tuple[str, str]]:
        """(kind, what it was and is) of all that ring."""
        config = self._config
        for kind, (value, rings) in _KINDS.items():
            if (threshold := getattr(config, kind)) is None:
                continue
            was, now = (_mean(map(value, part)) for part in (self._first, self._last))
            if rings(was, now, threshold):
                yield kind, f"{kind} {now:.3g}, was {was:.3g}"
        if config.referee is not None and (fall := self._referee.fall(config.referee)):
            was, now = fall
            yield (
                "referee",
                f"referee {now:.3g}, was {was:.3g}, while the score rose",
            )


def _metric(name: str) -> Callable[[Row], float]:
    return lambda row: row[name] if name in row else math.nan


def _entropy(row: Row) -> float:
    """Nats a token."""
    entropy, length = map(_metric, ("objective/entropy", "rollout/response_length"))
    return entropy(row) / length(row) if length(row) else math.nan


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


# What is compared, and whether it rings: (was, is, threshold). A NaN never does.
_KINDS: dict[str, tuple[Callable, Callable[[float, float, float], bool]]] = {
    "repetition": (_metric("rollout/repetition"), lambda a, b, x: b > a + x),
    "entropy": (_entropy, lambda a, b, x: b < x * a),
    "length": (
        _metric("rollout/response_length"),
        lambda a, b, x: b > x * a or x * b < a,
    ),
    "disagreement": (_metric("objective/disagreement"), lambda a, b, x: b > x * a),
}


class _Referee:
    """Where the referee was at its peak, and how noisy it is."""

    def __init__(self, window: int):
        self._window, self._count, self._missing = window, 0, False
        self._last: deque[tuple[float, float]] = deque(maxlen=max(window, 3))
        self._bends: list[float] = []  # |second differences|, in ascending order
        # (referee, score), means of a window: the first, the peak's, the last.
        self._first = self._peak = self._now = (math.nan, math.nan)

    def add(self, row: Row) -> None:
        """The next iteration's; one without a number does not count."""
        if not all(name in row for name in _JUDGED):
            self._missing = True
            return
        referee, score = (row[name] for name in _JUDGED)
        if not (math.isfinite(referee) and math.isfinite(score)):
            return
        self._last.append((referee, score))
        self._count += 1
        last = [*self._last]
        if self._count >= 3:
            a, b, c = (x for x, _ in last[-3:])
            bisect.insort(self._bends, abs((c - b) - (b - a)))
        if self._count >= self._window:
            referee, score = np.mean(last[-self._window :], axis=0).tolist()
            self._now = referee, score
            if self._count == self._window:
                self._first = self._now
            if not referee <= self._peak[0]:  # a NaN before the first one
                self._peak = self._now

    def fall(self, share: float) -> tuple[float, float] | None:
        """(peak, now) where it has fallen while the score went on rising."""
        if self._missing or self._count < max(2 * self._window, 3):
            return None  # too few to judge noise by
        (peak, before), (now, score) = self._peak, self._now
        # σ of an iteration from second differences, which have √6 σ and no trend; half
        # of what is normal is within 0.6745 σ. The difference of two windows has
        # √(2/n) σ.
        count = len(self._bends)
        median = (self._bends[(count - 1) // 2] + self._bends[count // 2]) / 2
        noise = median / (0.6745 * math.sqrt(6)) * math.sqrt(2 / self._window)
        least = max(share * (peak - self._first[0]), _SIGMAS * noise)
        return (peak, now) if peak - now > least and score > before else None
