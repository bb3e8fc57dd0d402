"""A run as a line of experiments/README.md: its cells, and what it was started by."""

from pathlib import Path
from typing import Any, NamedTuple

from experiments.claims import Claim, Number, Place
from rlhf_jax.errors import UserError
from rlhf_jax.report.texts import hardware, run_time
from rlhf_jax.rundir import load_json

COLUMNS = (
    *("script", "preset", "paper", "number", "expected", "measured", "met"),
    *("time", "hardware", "date", "commit"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{len(COLUMNS) * '---|'}\n"
Key = tuple[str, str]  # script and preset


class Line(NamedTuple):
    """A run as the page has it."""

    rows: str  # of the table, one a number; the first names the script
    command: str  # with the hardware as a comment above it


def make_line(key: Key, run: dict[str, Any], claim: Claim, run_dir: Path) -> Line:
    """The line of a run.

    Args:
      key: script and preset.
      run: what is in its provenance.json.
      claim: what is expected of it.
      run_dir: where its numbers are, and where messages say that they are.
    """
    found = run["returned"] if claim.file is None else load_json(run_dir / claim.file)
    (script, preset), machine = key, hardware(run)
    first = f"[{script}]({script}.py)", preset, ", ".join(map(link, claim.papers))
    last = run_time(run), machine, run["ended"][:10], run["commit"]
    rows = []
    for number in claim.numbers:
        value = look_up(found, number, run_dir)
        told = number.name, expected(number), shown(value), met(number, value)
        rows.append(f"| {' | '.join((*first, *told, *last))} |")
        first, last = [""] * len(first), [""] * len(last)  # said once
    comment = f"# {script}, {preset}: {machine}"
    return Line("\n".join(rows), f"{comment}\n{run['command']}")


def look_up(found: Any, number: Number, run_dir: Path) -> float:
    """The number of a claim among those that a run has found."""
    try:
        for part in number.at:
            found = found[part]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{run_dir}: has no {place(number.at)}: expected it for {number.name}: run "
            "it with the options that experiments/README.md has for this script"
        ) from error
    if not isinstance(found, int | float):
        raise UserError(f"{run_dir}: {place(number.at)} is {found}: expected a number")
    return found


def place(at: Place) -> str:
    """Where a number is, as text."""
    return " → ".join(map(str, at))


def expected(number: Number) -> str:
    """Bounds, and where they are from.

    >>> expected(Number("KL", ("kl",), "a leash", None, 15))
    '≤ 15: a leash'
    """
    low, high = number.least, number.most
    if low is None and high is None:
        return number.why
    if low is None or high is None:
        return (
            f"≥ {low:g}: {number.why}" if high is None else f"≤ {high:g}: {number.why}"
        )
    return f"{low:g} … {high:g}: {number.why}"


def met(number: Number, value: float) -> str:
    """Whether a number is within its bounds.

    >>> met(Number("KL", ("kl",), "a leash", None, 15), 15.2)
    '**not met**'
    """
    if number.least is None and number.most is None:
        return "–"
    low = number.least is None or value >= number.least
    high = number.most is None or value <= number.most
    return "met" if low and high else "**not met**"


def shown(value: float) -> str:
    """Three decimals of what is no whole number; no minus before a zero.

    >>> shown(0.83333), shown(-0.0002), shown(5)
    ('0.833', '0.000', '5')
    """
    return str(value) if isinstance(value, int) else f"{value:z.3f}"


def link(paper: str) -> str:
    """To a paper on arXiv."""
    return f"[{paper}](https://arxiv.org/abs/{paper})"
