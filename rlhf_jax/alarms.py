"""Alarms of reward hacking: what else changes when a policy learns to please a reward.

As with `criteria`, an alarm is a function of the run's metrics so far and of nothing
else. What is compared are means over a window of iterations: the first of the run are
what it began with, the last what it is now.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rlhf_jax.criteria import Rows
from rlhf_jax.errors import UserError

OnAlarm = Literal["warn", "soften", "stop"]
_SIGMAS = 5.0  # of noise, that the referee falls by at least


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
    found: list[Alarm] = []
    for count in range(1, len(rows) + 1):
        if alarm := next_alarm(rows[:count], config, found):
            found.append(alarm)
    return found


def next_alarm(rows: Rows, config: AlarmConfig, before: list[Alarm]) -> Alarm | None:
    """The alarm that rings after the last of these iterations, if one does.

    No reference.

    Args:
      rows: metrics of every iteration so far, in order.
      config: thresholds.
      before: the alarms of earlier iterations.
    """
    step = int(rows[-1]["step"])
    if before and step < before[-1].step + config.window:
        return None
    if len(rows) < 2 * config.window:
        return None
    found = dict(_ringing(rows, config))
    return Alarm(step, tuple(found), "; ".join(found.values())) if found else None


def _ringing(rows: Rows, config: AlarmConfig) -> Iterator[tuple[str, str]]:
    """(kind, what it was and is) of all that ring."""
    first, last = rows[: config.window], rows[-config.window :]
    for kind, (value, rings) in _KINDS.items():
        if (threshold := getattr(config, kind)) is None:
            continue
        was, now = (_mean(map(value, part)) for part in (first, last))
        if rings(was, now, threshold):
            yield kind, f"{kind} {now:.3g}, was {was:.3g}"
    if config.referee is not None and (fall := _referee_fall(rows, config)):
        yield (
            "referee",
            "referee {1:.3g}, was {0:.3g}, while the score rose".format(*fall),
        )


def _metric(name: str) -> Callable[[Mapping[str, float]], float]:
    return lambda row: row[name] if name in row else math.nan


def _entropy(row: Mapping[str, float]) -> float:
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


def _referee_fall(rows: Rows, config: AlarmConfig) -> tuple[float, float] | None:
    """(peak, now) of the referee where it has fallen while the score went on rising."""
    window, names = config.window, ("objective/referee", "objective/score")
    if not all(name in row for row in rows for name in names):
        return None
    values = np.array([[row[name] for name in names] for row in rows])
    values = values[~np.isnan(values).any(axis=1)]
    if len(values) < max(2 * window, 3):  # as many as noise is judged by
        return None
    referee, score = sliding_window_view(values, window, axis=0).mean(axis=2).T
    peak = int(np.argmax(referee))
    fall, rise = referee[peak] - referee[-1], referee[peak] - referee[0]
    # σ of an iteration from second differences, which have √6 σ and no trend; half of
    # what is normal is within 0.6745 σ. The difference of two windows has √(2/n) σ.
    bends = np.abs(np.diff(values[:, 0], n=2))
    noise = np.median(bends) / (0.6745 * math.sqrt(6)) * math.sqrt(2 / window)
    least = max(config.referee * rise, _SIGMAS * noise)
    if fall > least and score[-1] > score[peak]:
        return float(referee[peak]), float(referee[-1])
    return None
