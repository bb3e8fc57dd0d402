"""Whether a run that learns from what it samples goes on; see docs/hacking.md."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.samples import Evaluation, report_samples
from rlhf_jax.alarms import Alarm, AlarmConfig, Alarms
from rlhf_jax.criteria import ALL_STEPS, Criteria, StopConfig
from rlhf_jax.errors import UserError
from rlhf_jax.processes import is_first
from rlhf_jax.rundir import save_json
from rlhf_jax.steps import PolicyState
from rlhf_jax.tracking import METRICS_FILE, read_metrics

ALARMS_FILE = "alarms.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What ends a run early, and what it is watched for."""

    stop: StopConfig = StopConfig()
    """What ends the run early; nothing by default."""
    alarm: AlarmConfig = AlarmConfig()
    """Signs of reward hacking, and what is done about them."""

    def check_watched(self, *, kl: bool, softens: bool) -> None:
        """Refuses what the script has no number or no coefficient for.

        Args:
          kl: whether the KL from a reference is measured.
          softens: whether there is a KL coefficient above 0 to raise.

        Raises:
          UserError: the message names the option.
        """
        if self.stop.kl is not None and not kl:
            raise UserError(
                f"stop.kl = {self.stop.kl}: with kl.coef = 0 no KL is measured; "
                "expected none, or a coefficient above 0"
            )
        if self.alarm.on_alarm == "soften" and not softens:
            raise UserError(
                "alarm.on_alarm = soften: there is no KL coefficient above 0 to raise; "
                "expected warn or stop"
            )


class Watch:
    """The criteria and alarms of a run, looked at after every iteration.

    All that it goes by are the metrics; those of earlier iterations of a resumed run it
    reads from the file, in every process alike.

    Args:
      run_dir: of the run.
      config: criteria and alarms.
      restored: the step of the checkpoint that it goes on from; None for none.
      total: iterations at most.

    Raises:
      UserError: metrics of earlier iterations are missing, and decide something.
    """

    def __init__(
        self, run_dir: Path, config: WatchConfig, restored: int | None, total: int
    ):
        self._run_dir, self._config, self._total = run_dir, config, total
        self._step = restored or 0
        self._criteria, self._alarms = Criteria(config.stop), Alarms(config.alarm)
        for row in _read(run_dir / METRICS_FILE, self._step, config):
            self._criteria.add(row)
            self._alarms.add(row)
        self._ended = self._why()
        if is_first():  # alarms of later steps go: those steps are made again
            path = run_dir / ALARMS_FILE
            path.unlink(missing_ok=True)
            self._write(self._alarms.rung)

    @property
    def ended(self) -> str | None:
        """Why the run has ended, in one line; None where it goes on."""
        return self._ended

    def nothing_to_do(self, what: str) -> bool:
        """Whether the run has ended before; then it says so, and of how many what."""
        if self._ended is not None:
            made = f"{self._step}/{self._total} {what}"
            print(f"{self._run_dir}: nothing to do ({made}): {self._ended}")
        return self._ended is not None

    def steps(self) -> Iterator[int]:
        """The iterations that are to be made, until one of them ends the run."""
        while self._ended is None:
            yield self._step + 1

    def add(self, step: int, found: Mapping[str, float]) -> None:
        """An iteration is made. An alarm that rings is shown and written down."""
        self._step = step
        row = {"step": step, **found}
        self._criteria.add(row)
        if (alarm := self._alarms.add(row)) is not None:
            known = {kind for rung in self._alarms.rung[:-1] for kind in rung.kinds}
            if is_first():
                self._write([alarm])
                does = self._config.alarm.on_alarm
                if does == "soften" or not known.issuperset(alarm.kinds):  # is news
                    text = alarm.text + _DONE[does]
                    print(f"warning: step {step}: alarm: {text}", file=sys.stderr)
        self._ended = self._why()
        if self._ended is not None and step < self._total:
            print(f"{self._run_dir}: ends at {step}/{self._total}: {self._ended}")

    def soften(self, state: PolicyState) -> PolicyState:
        """The state with a higher KL coefficient, if this iteration's alarm asks so.

        It is part of what is saved, and a resumed run does not ask again.
        """
        alarm, rung = self._config.alarm, self._alarms.rung
        if alarm.on_alarm != "soften" or not rung or rung[-1].step != self._step:
            return state
        return state.replace(kl_coef=alarm.factor * state.kl_coef)

    def _why(self) -> str | None:
        if (why := self._criteria.reason()) is not None:
            return why
        if self._config.alarm.on_alarm == "stop" and self._alarms.rung:
            return f"alarm: {self._alarms.rung[0].text}"
        return ALL_STEPS if self._step >= self._total else None

    def _write(self, rung: list[Alarm]) -> None:
        done = {"on_alarm": self._config.alarm.on_alarm}
        lines = [json.dumps(alarm._asdict() | done) + "\n" for alarm in rung]
        if lines:
            with (self._run_dir / ALARMS_FILE).open("a", encoding="utf-8") as file:
                file.writelines(lines)


_DONE = {"warn": "", "soften": "; the KL coefficient is raised", "stop": ""}


def _read(path: Path, step: int, config: WatchConfig) -> list[dict[str, float]]:
    """Metrics of the iterations up to this one."""
    rows = read_metrics(path) if step and path.exists() else []
    rows = [row for row in rows if row["step"] <= step]
    decides = config.stop != StopConfig() or config.alarm.on_alarm != "warn"
    if decides and [row["step"] for row in rows] != list(range(1, step + 1)):
        raise UserError(
            f"{path}: expected a line for each of steps 1 to {step}, by which criteria "
            "and alarms decide; go on without --stop and with --alarm.on-alarm warn"
        )
    return rows


def report_end(
    run_dir: Path, before: Evaluation, after: Evaluation, watch: Watch
) -> dict[str, float]:
    """`report_samples`; why the run has ended stands in summary.json, too."""
    summary = report_samples(run_dir, before, after)
    save_json(run_dir / "summary.json", summary | {"stopped": watch.ended})
    return summary
