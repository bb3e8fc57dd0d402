"""Texts and numbers as a page shows them: differences, shades, digits."""

import difflib
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

LEVELS = 8  # shades of each sign
_SCALES = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class Piece(NamedTuple):
    """The text of a token, with its share of the KL."""

    text: str
    kl: float
    shade: str  # p1 … p8 where the policy says it more often, n1 … n8 where less


def clean(text: str) -> str:
    """Text without control characters and halves of characters, which no page holds.

    >>> clean("a\\x00b\\ud800\\n")
    'a\\ufffdb\\ufffd\\n'
    """
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text)


def number(value: float, digits: int | None = None) -> str:
    """Four digits, or so many after the point, and a minus as wide as a plus.

    >>> number(-0.024999), number(5120), number(3e-05), number(math.nan)
    ('−0.025', '5,120', '3e−05', 'NaN')
    >>> number(0.5, 3), number(-1e-9, 3)
    ('0.500', '0.000')
    """
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(float(value))]
    if digits is not None:
        shown = f"{round(value, digits) + 0.0:,.{digits}f}"  # no minus before nothing
    elif isinstance(value, int) or (value == int(value) and abs(value) < 1e9):
        shown = f"{int(value):,}"
    else:
        shown = f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return shown.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """With a sign, and so many digits after the point.

    >>> signed(0.5), signed(-1.234), signed(-0.001)
    ('+0.50', '−1.23', '0.00')
    """
    if not math.isfinite(value):
        return number(value)
    rounded = round(value, digits)
    shown = f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
    return shown.replace("-", "−")


def shown(value: Any) -> str:
    """An option's value."""
    return clean(json.dumps(value, ensure_ascii=False))


def shade_scale(values: Sequence[float]) -> float:
    """The KL of the darkest shade: of 50 tokens about one has more.

    >>> shade_scale([0.1] * 97 + [2.5] * 3)
    3.0
    """
    sizes = sorted(abs(x) for x in values if math.isfinite(x))
    size = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
    return next((scale for scale in _SCALES if scale >= size), _SCALES[-1])


def shaded(texts: Sequence[str], kl: Sequence[float], scale: float) -> list[Piece]:
    """Tokens with their shades.

    >>> shaded(["a", " b"], [0.01, -2.0], scale=1.0)
    [Piece(text='a', kl=0.01, shade=''), Piece(text=' b', kl=-2.0, shade='n8')]
    """
    return [
        Piece(clean(t), x, _shade(x, scale)) for t, x in zip(texts, kl, strict=True)
    ]


def _shade(kl: float, scale: float) -> str:
    if math.isnan(kl):
        return ""
    level = round(LEVELS * min(abs(kl) / scale, 1.0))
    return f"{'p' if kl > 0 else 'n'}{level}" if level else ""


class Change(NamedTuple):
    """A part of two texts."""

    kind: str  # same, gone or new
    text: str


def word_changes(before: str, after: str) -> list[Change]:
    """Which words of a text are gone, and which are new.

    >>> [tuple(change) for change in word_changes("a bad film", "a good film")]
    [('same', 'a '), ('gone', 'bad '), ('new', 'good '), ('same', 'film')]
    """
    words = [re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text) for text in (before, after)]
    matcher = difflib.SequenceMatcher(None, *words, autojunk=False)
    changes: list[Change] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        old, new = "".join(words[0][a:b]), "".join(words[1][c:d])
        if kind == "equal":
            changes.append(Change("same", clean(old)))
            continue
        changes += [Change("gone", clean(old))] if old else []
        changes += [Change("new", clean(new))] if new else []
    return changes


def hardware(run: dict[str, Any]) -> str:
    """Cores, and devices that are no CPU; processes if there were several.

    >>> hardware({"cores": 2, "cpu": "A(R)", "devices": {"TPU": 8}, "processes": 1})
    '8 × TPU, 2 cores (A)'
    """
    devices = [f"{n} × {kind}" for kind, n in run["devices"].items() if kind != "cpu"]
    cpu = re.sub(r"\((R|TM)\)", "", run["cpu"])
    parts = [*devices, f"{run['cores']} cores ({cpu})"]
    if (shards := run["devices"].get("cpu", 1)) > 1:
        parts.append(f"as {shards} devices")
    if run["processes"] > 1:
        parts.append(f"{run['processes']} processes")
    return ", ".join(parts)


def run_time(run: dict[str, Any]) -> str:
    """Of the clock and of the cores; of a resumed run the last process alone is timed.

    >>> run_time({"seconds": 75.2, "cpu_seconds": 31.0, "resumed": False})
    '1 min 15 s, CPU 31 s'
    """
    text = f"{_duration(run['seconds'])}, CPU {_duration(run['cpu_seconds'])}"
    return f"more than {text}: resumed" if run["resumed"] else text


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(75.2), _duration(4000)
    ('1 min 15 s', '1 h 6 min')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"
