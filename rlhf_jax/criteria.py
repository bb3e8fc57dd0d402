"""When a run that learns from what it samples ends before its last iteration.

The decision is a function of the run's metrics so far and of nothing else. So a run
that was stopped and resumed ends where it would have ended, and of several processes
each comes to the same.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from rlhf_jax.errors import UserError

Row = Mapping[str, float]  # a line of metrics.jsonl, of one iteration
Rows = Sequence[Row]
ALL_STEPS = "all steps"  # why a run ended that no criterion has ended


@dataclasses.dataclass(frozen=True)
class StopConfig:
    """What ends a run early; the first that holds does.

    Raises:
      UserError: a value out of range; the message names the option.

    >>> StopConfig(patience=0)
    Traceback (most recent call last):
    rlhf_jax.errors.UserError: stop.patience = 0: expected 1 or more, or none
    """

    score: float | None = None
    """An iteration's mean score that is enough; none has no target."""
    kl: float | None = None
    """KL from the reference, nats a response, that is not exceeded; none has no
    budget."""
    patience: int | None = None
    """Iterations without a better mean score after which it ends; none waits for
    ever."""
    min_delta: float = 0.0
    """What a score must be better by, for patience."""

    def __post_init__(self):
        if self.score is not None and not math.isfinite(self.score):
            raise UserError(f"stop.score = {self.score}: expected a number, or none")
        if self.kl is not None and not 0 < self.kl < math.inf:
            raise UserError(
                f"stop.kl = {self.kl}: expected nats a response above 0, or none"
            )
        if self.patience is not None and self.patience < 1:
            raise UserError(
                f"stop.patience = {self.patience}: expected 1 or more, or none"
            )
        if not 0 <= self.min_delta < math.inf:
            raise UserError(f"stop.min_delta = {self.min_delta}: expected 0 or more")
        if self.min_delta and self.patience is None:
            raise UserError(
                f"stop.min_delta = {self.min_delta}: an option of stop.patience, which "
                "is none"
            )


def stop_reason(rows: Rows, config: StopConfig) -> str | None:
    """Why a run ends after these iterations; None where it goes on.

    Target: s ≥ ``score``. Budget: KL > ``kl``; Gao et al. 2022, arXiv:2210.10760, find
    that a KL penalty does what stopping early does. Plateau: of the scores so far the
    last ``patience`` have max ≤ max of those before them + ``min_delta``.

    Args:
      rows: metrics of every iteration so far, in order.
      config: the criteria; a NaN meets none.

    Returns:
      One line, which begins with the name of the criterion.

    >>> rows = [{"objective/score": s, "objective/kl": 2.0} for s in (0.1, 0.5, 0.4)]
    >>> stop_reason(rows, StopConfig(score=0.5)) is None
    True
    >>> stop_reason(rows, StopConfig(kl=1.5))
    'kl budget: objective/kl = 2 nats a response, above 1.5'
    >>> stop_reason(rows, StopConfig(score=0.6, patience=1))
    'plateau: no score above 0.5 in the last 1 iterations'
    """
    criteria = Criteria(config)
    for row in rows:
        criteria.add(row)
    return criteria.reason()


class Criteria:
    """`stop_reason` of a run under way, an iteration at a time. No reference.

    What an iteration takes grows with ``patience``, not with those before it.

    Args:
      config: the criteria.

    >>> criteria = Criteria(StopConfig(score=0.5))
    >>> for step, score in enumerate([0.1, 0.7], 1):
    ...     criteria.add({"step": step, "objective/score": score})
    ...     criteria.reason()
    'target score: objective/score = 0.7, asked for 0.5'
    """

    def __init__(self, config: StopConfig):
        self._config = config
        self._last: Row | None = None
        self._before = math.nan  # the best score but for the last ``patience``
        self._since: deque[float] = deque()

    def add(self, row: Row) -> None:
        """An iteration's metrics, the next ones."""
        self._last = row
        if self._config.patience is not None:
            self._since.append(row["objective/score"])
            if len(self._since) > self._config.patience:
                self._before = _best([self._before, self._since.popleft()])

    def reason(self) -> str | None:
        """Why the run ends after the last one; None where it goes on."""
        last, config = self._last, self._config
        if last is None:
            return None
        if config.score is not None and (s := last["objective/score"]) >= config.score:
            return f"target score: objective/score = {s:.4g}, asked for {config.score}"
        if config.kl is not None and (kl := last["objective/kl"]) > config.kl:
            return (
                f"kl budget: objective/kl = {kl:.4g} nats a response, above {config.kl}"
            )
        best = self._before + config.min_delta
        if config.patience is not None and _best(self._since) <= best:
            return (
                f"plateau: no score above {best:.4g} in the last {config.patience} "
                "iterations"
            )
        return None


def _best(scores: Iterable[float]) -> float:
    """The greatest; NaN where there is none but NaN."""
    return max((x for x in scores if not math.isnan(x)), default=math.nan)
