"""What a page says in numbers: results, curves, frontiers, calibration."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from rlhf_jax.report.curves import COLOURS, drawn_panels, panel_lines, smoothed
from rlhf_jax.report.pictures import (
    curve_picture,
    frontier_picture,
    margin_picture,
    reliability_picture,
    svg,
)
from rlhf_jax.report.reading import Run
from rlhf_jax.report.texts import clean, number, signed

# Names of summary.json and what they are; those that are missing here stay as they are.
_LABELS = {
    "gold": ("Gold reward", "a response"),
    "reward": ("Learned reward", "a response"),
    "kl": ("KL from the reference", "nats a response"),
    "distinct": ("Distinct samples", "share"),
    "response_length": ("Response length", "tokens"),
    "ended": ("Ended by a stop token", "share"),
    "reward/eval_accuracy": ("Reward model: accuracy, held out", "share"),
    "reward/best_accuracy": ("Reward model: best possible accuracy", "share"),
    "reward/eval_loss": ("Reward model: loss, held out", "nats a judgement"),
    "preference/eval_accuracy": ("Preferences: accuracy, held out", "share"),
    "preference/eval_loss": ("Preferences: loss, held out", "loss a pair"),
    "preference/eval_margin": ("Preferences: margin, held out", "implied score"),
    "sft/eval_loss": ("Supervised fine-tuning: loss, held out", "nats a token"),
    "judgements": ("Judgements held out", "count"),
}
_FRONTIERS = {"objective/gold": "Gold reward", "objective/score": "Learned reward"}


class Label(NamedTuple):
    """What a row is about."""

    text: str
    unit: str


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A table a stage: numbers before and after, and numbers that stand alone."""
    stages = dict.fromkeys(stage for run in runs for stage in run.summaries)
    return [_result(stage, runs) for stage in stages]


def _result(stage: str, runs: Sequence[Run]) -> dict[str, Any]:
    having = [run for run in runs if stage in run.summaries]
    found = [run.summaries[stage] for run in having]
    names = dict.fromkeys(name for values in found for name in values)
    after = [name.removeprefix("after/") for name in names if name.startswith("after/")]
    pairs = [name for name in after if f"before/{name}" in names]
    paired = {f"{when}/{name}" for name in pairs for when in ("before", "after")}
    alone = [n for n in names if n not in paired and n != "stopped"]
    ended = [
        (r.name, v["stopped"])
        for r, v in zip(having, found, strict=True)
        if v.get("stopped")
    ]
    return {
        "stage": stage,
        "runs": [run.name for run in having],
        "pairs": [(_label(name), [_pair(v, name) for v in found]) for name in pairs],
        "alone": [
            (_label(name), [_value(v.get(name)) for v in found]) for name in alone
        ],
        "stopped": [(name, clean(str(reason))) for name, reason in ended],
    }


def _label(name: str) -> Label:
    return Label(*_LABELS.get(name, (clean(name), "")))


def _pair(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Two numbers with as many digits, and their difference."""
    before, after = values.get(f"before/{name}"), values.get(f"after/{name}")
    if not (_is_number(before) and _is_number(after)):
        return {"before": _value(before), "after": _value(after), "change": ""}
    most = max(abs(before), abs(after))
    digits = 3 if most < 10 else 2 if most < 1000 else 0
    cells = {"before": before, "after": after}
    change = signed(after - before, digits)
    return {k: _value(x, digits) for k, x in cells.items()} | {"change": change}


def _value(value: Any, digits: int | None = None) -> dict[str, str]:
    """As it is in the file, and as it is shown."""
    if _is_number(value):
        return {"exact": repr(value), "shown": number(value, digits)}
    return {"exact": "", "shown": "—" if value is None else clean(str(value))}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curves(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Small plots with where their curves end, and all of it in numbers."""
    read = [run.curves for run in runs]
    if not any(read):
        return None
    panels = []
    for panel in drawn_panels(read, " ".join(run.name for run in runs)):
        lines = list(panel_lines(panel, read))
        ends = list(_ends(panel.metrics, runs))
        said = "; ".join(
            f"{e['of']} {e['first']} to {e['last']['shown']}" for e in ends
        )
        name = f"panel {panel.title}"
        panels.append(
            {
                "title": panel.title,
                "unit": panel.ylabel,
                "picture": svg(curve_picture(lines, panel.xlabel), name, said),
                "ends": ends,
            }
        )
    dashed = any(line.dashed for panel in _drawn(runs) for line in panel)
    return {
        "panels": panels,
        "numbers": list(_in_numbers(runs)),
        "smoothed": any(map(smoothed, read)),
        "dashed": dashed,
    }


def _drawn(runs: Sequence[Run]) -> Iterator[list[Any]]:
    read = [run.curves for run in runs]
    yield from (list(panel_lines(p, read)) for p in drawn_panels(read, ""))


def _ends(metrics: dict[str, str], runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Each curve of a panel: whose it is, and its last value."""
    for at, run in enumerate(runs, 1):
        shown = [name for name in metrics if name in run.curves]
        for index, name in enumerate(shown):
            values = run.curves[name][1]
            label = metrics[name] if len(shown) > 1 else ""
            yield {
                "colour": at if len(runs) > 1 else index + 1,
                "of": f"{clean(run.name)} {label}".strip() if len(runs) > 1 else label,
                "label": label,
                "first": number(values[0]),
                "last": _value(float(values[-1])),
            }


def _in_numbers(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """First, last, least and largest of every metric."""
    names = dict.fromkeys(name for run in runs for name in run.curves)
    for name in names:
        for at, run in enumerate(runs, 1):
            if name not in run.curves:
                continue
            steps, values = run.curves[name]
            finite = np.flatnonzero(np.isfinite(values))
            ends = [0, len(values) - 1]
            if finite.size:
                low, high = (finite[f(values[finite])] for f in (np.argmin, np.argmax))
                ends += [low, high]
            cells = [(_value(float(values[i])), f"{steps[i]:,}") for i in ends]
            cells += [(_value(None), "")] * (4 - len(cells))
            yield {"name": name, "run": run.name, "colour": at, "cells": cells}


def frontiers(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rewards over √KL, of all runs that have both."""
    found = []
    for name, title in _FRONTIERS.items():
        paths, said = [], []
        for colour, run in zip(COLOURS, runs, strict=False):
            both = _together(run, name)
            if both is None or len(both[0]) < 2:
                continue
            kl, reward = both
            paths.append((kl, reward, colour))
            whose = f"{clean(run.name)}: " if len(runs) > 1 else ""
            ends = f"{number(reward[-1])} at a KL of {number(kl[-1])} nats"
            said.append(f"{whose}ends with {ends}")
        if paths:
            text = f"{title} over the square root of the KL: {'; '.join(said)}"
            picture = svg(
                frontier_picture(paths), f"frontier {title}", text, height=240
            )
            found.append({"title": title, "picture": picture, "said": said})
    return found


def _together(run: Run, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(KL, reward) at the steps that have both."""
    if name not in run.curves or "objective/kl" not in run.curves:
        return None
    rewards = dict(zip(*map(np.ndarray.tolist, run.curves[name]), strict=True))
    kls = dict(zip(*map(np.ndarray.tolist, run.curves["objective/kl"]), strict=True))
    both = [step for step in kls if step in rewards]
    pairs = np.array([(kls[step], rewards[step]) for step in both]).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    return pairs[:, 0], pairs[:, 1]


def calibrations(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How far a reward model's scores are probabilities, and where they are right."""
    found = []
    for run in runs:
        for stage, values in run.calibrations.items():
            bins = [b for b in values.get("bins", []) if b["count"]]
            margins = [m for m in values.get("margins", []) if m["count"]]
            name = "/".join(filter(None, (run.name, stage)))
            found.append(
                {
                    "name": clean(name),
                    "numbers": {
                        short: _value(values[short])
                        for short in ("ece", "ece_by_chance", "brier")
                        if short in values
                    },
                    "bins": [_cells(b, "predicted", "observed") for b in bins],
                    "margins": [
                        _cells(m, "accuracy", "low95", "high95") for m in margins
                    ],
                    "reliability": bins and _reliability(bins, name),
                    "accuracy": margins and _accuracy(margins, name),
                }
            )
    return found


def _cells(row: dict[str, Any], *names: str) -> list[dict[str, str]]:
    between = f"{number(row['low'])} – {number(row['high'])}"
    return [{"exact": "", "shown": between}] + [
        _value(row[n]) for n in (*names, "count")
    ]


def _reliability(bins: list[dict[str, Any]], name: str) -> Any:
    far = max(bins, key=lambda b: abs(b["predicted"] - b["observed"]))
    shares = f"{number(far['predicted'])} predicted, {number(far['observed'])} observed"
    text = (
        f"Observed over predicted share of {len(bins)} bins; farthest apart: {shares}"
    )
    return svg(reliability_picture(bins), f"reliability {name}", text, height=240)


def _accuracy(margins: list[dict[str, Any]], name: str) -> Any:
    ends = [number(m["accuracy"]) for m in (margins[0], margins[-1])]
    text = f"Accuracy by the difference of scores, from {ends[0]} to {ends[1]}"
    return svg(margin_picture(margins), f"margins {name}", text, height=240)
