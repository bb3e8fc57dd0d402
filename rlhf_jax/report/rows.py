"""What a page shows of a run's rows: samples, rows put aside, faults, options."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.sorting import reason_kind
from rlhf_jax.guards import FAULTS_FILE
from rlhf_jax.report.reading import Run
from rlhf_jax.report.texts import (
    Change,
    Piece,
    clean,
    hardware,
    number,
    run_time,
    shade_scale,
    shaded,
    shown,
    signed,
    word_changes,
)

SAMPLES, OPEN = 12, 4  # prompts on a page, and how many are not folded away
ROWS = 5  # quarantined ones on a page
FAULTS = 50
_RAW = 240  # characters of a quarantined row
_LARGEST = 3  # tokens that are named below an answer


class Answer(NamedTuple):
    """A completion of a sample."""

    title: str
    colour: int  # of its run; 0: nobody's
    text: str
    pieces: list[Piece] | None  # its tokens, where their KL is known
    facts: list[tuple[str, str]]  # name and number
    largest: list[Piece]  # the tokens with the most KL
    changes: list[Change] | None  # from the one before training


def samples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Prompts with their answers: of one run before and after, or runs side by side."""
    stages = dict.fromkeys(stage for run in runs for stage in run.samples)
    found = []
    for stage in stages:
        having = [(i, run) for i, run in enumerate(runs, 1) if stage in run.samples]
        asked = [[row["prompt"] for row in run.samples[stage]] for _, run in having]
        if all(prompts[:SAMPLES] == asked[0][:SAMPLES] for prompts in asked):
            found.append(_beside(stage, having, len(runs) > 1))
        else:  # they were asked other things: one after the other
            found += [_beside(stage, [one], True) for one in having]
    return found


def _beside(
    stage: str, having: Sequence[tuple[int, Run]], several: bool
) -> dict[str, Any]:
    rows = [run.samples[stage] for _, run in having]
    shown_rows = [run_rows[:SAMPLES] for run_rows in rows]
    kl = [x for run in shown_rows for row in run for x in _kl_of(row)]
    scale = shade_scale(kl) if kl else None
    return {
        "stage": stage,
        "run": clean(having[0][1].name) if several and len(having) == 1 else "",
        "scale": None if scale is None else number(scale),
        "count": len(rows[0]),
        "rows": [
            {
                "prompt": clean(of_runs[0]["prompt"]),
                "answers": _answers(of_runs, having, several, scale or 1.0),
            }
            for of_runs in zip(*shown_rows, strict=False)
        ],
    }


def _kl_of(row: dict[str, Any]) -> list[float]:
    both = [_side(row, when) for when in ("before", "after")]
    return [float(x) for side in both for x in side.get("kl", [])]


def _side(row: dict[str, Any], when: str) -> dict[str, Any]:
    """An answer; some scripts write no more of it than its text."""
    side = row[when]
    return {"completion": side} if isinstance(side, str) else side


def _answers(
    rows: Sequence[dict[str, Any]],
    having: Sequence[tuple[int, Run]],
    several: bool,
    scale: float,
) -> list[Answer]:
    """Before and after; what is the same before several runs is there once."""
    before = [_side(row, "before") for row in rows]
    together = all(side["completion"] == before[0]["completion"] for side in before)
    answers = []
    for index, (side, row, (place, run)) in enumerate(
        zip(before, rows, having, strict=True)
    ):
        name = f", {clean(run.name)}" if several else ""
        if index == 0 or not together:
            whose = (0, "") if together else (place, name)
            answers.append(_answer(side, f"Before{whose[1]}", whose[0], scale))
        changes = word_changes(side["completion"], _side(row, "after")["completion"])
        after = _answer(_side(row, "after"), f"After{name}", place, scale)
        answers.append(after._replace(changes=changes, colour=place if several else 0))
    return answers


def _answer(side: dict[str, Any], title: str, colour: int, scale: float) -> Answer:
    pieces = None
    facts = [
        (label, signed(float(side[key])))
        for key, label in (("gold", "gold"), ("score", "score"))
        if key in side
    ]
    if "kl" in side:
        kl = [float(x) for x in side["kl"]]
        pieces = shaded(side["tokens"], kl, scale)
        facts.append(("KL", f"{signed(sum(kl))} nats"))
    if "tokens" in side:
        facts.append(("tokens", str(len(side["tokens"]))))
    largest = sorted(pieces or [], key=lambda piece: -abs(piece.kl))[:_LARGEST]
    largest = [piece for piece in largest if piece.shade]
    return Answer(
        title, colour, clean(side["completion"]), pieces, facts, largest, None
    )


def quarantined(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows that could not be used: how many, why, and the first of them."""
    found = []
    for run in runs:
        for stage, rows in run.quarantined.items():
            kinds = Counter(reason_kind(str(row.get("reason", ""))) for row in rows)
            first = [
                {
                    key: clean(str(row.get(key, "")))
                    for key in ("origin", "reason", "raw")
                }
                for row in rows[:ROWS]
            ]
            for row in first:
                if len(row["raw"]) > _RAW:
                    row["raw"] = row["raw"][:_RAW] + "…"
            found.append(
                {
                    "name": _name(run, stage, runs),
                    "count": len(rows),
                    "kinds": [(n, clean(kind)) for kind, n in kinds.most_common()],
                    "first": first,
                }
            )
    return found


def faults(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Steps that were skipped, spikes, alarms."""
    return [
        {
            "name": _name(run, stage, runs),
            "file": file,
            "count": len(rows),
            "rows": [(row.get("step", "—"), _fault(row)) for row in rows[:FAULTS]],
        }
        for run in runs
        for file, found in ((FAULTS_FILE, run.faults), ("alarms.jsonl", run.alarms))
        for stage, rows in found.items()
        if rows
    ]


def _fault(row: dict[str, Any]) -> str:
    """One line: what is known of it, in the file's own words."""
    if "text" in row:  # an alarm
        return clean(f"{row['text']} ({row.get('on_alarm', 'warn')})")
    parts = []
    if row.get("skipped"):
        parts.append(f"{row['skipped']} of {row.get('updates', '?')} updates skipped")
    for name, value in row.get("not_finite", {}).items():
        parts.append(f"{name} = {value}")
    known = {"step", "rows", "origins", "skipped", "updates", "in_a_row", "not_finite"}
    for name, value in row.items():
        if name in known:
            continue
        parts.append(f"{name}: {value if isinstance(value, str) else shown(value)}")
    if named := row.get("origins", row.get("rows")):
        more = " …" if len(named) > ROWS else ""
        parts.append(f"rows {', '.join(map(str, named[:ROWS]))}{more}")
    return clean("; ".join(parts))


def _name(run: Run, stage: str, runs: Sequence[Run]) -> str:
    return clean("/".join(filter(None, (run.name if len(runs) > 1 else "", stage))))


def options(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Commands, and how configurations of runs differ; of one run all of it."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    rows = []
    for name in names:
        values = [
            shown(run.options[name]) if name in run.options else "—" for run in runs
        ]
        if len(runs) == 1 or len(set(values)) > 1:
            rows.append((clean(name), values))
    if not names:
        return None
    made = [
        {"name": _name(run, stage, runs), "command": clean(found["command"])}
        | {"how": clean(_how(found))}
        for run in runs
        for stage, found in run.made.items()
    ]
    return {"rows": rows, "same": len(names) - len(rows), "made": made}


def _how(found: dict[str, Any]) -> str:
    """By which code, when, for how long and on what."""
    on = f"{run_time(found)}, {hardware(found)}"
    return f"code {found['commit']}, {found['ended'][:10]}, {on}"
