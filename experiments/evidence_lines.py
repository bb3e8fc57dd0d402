"""A run as a line of experiments/README.md: its cells, and what it was started by."""

from pathlib import Path
from typing import Any, NamedTuple

from experiments.claims import Claim, Number, Place
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json

COLUMNS = (
    *("script", "preset", "paper", "hardware", "time"),
    *("expected", "measured", "met", "date", "commit"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{len(COLUMNS) * '---|'}\n"
Key = tuple[str, str]  # script and preset


class Line(NamedTuple):
    """A run as the page has it."""

    row: str  # of the table
    command: str  # with the hardware as a comment above it


def make_line(key: Key, run: dict[str, Any], claim: Claim, run_dir: Path) -> Line:
    """The line of a run; the numbers of a claim one below the other."""
    found = run["returned"] if claim.file is None else load_json(run_dir / claim.file)
    values = [look_up(found, number, run_dir) for number in claim.numbers]
    pairs = [*zip(claim.numbers, values, strict=True)]
    script, preset = key
    cells = (
        f"[{script}]({script}.py)",
        *(preset, ", ".join(map(link, claim.papers)) or "–"),
        *(hardware(run), duration(run["seconds"], resumed=run["resumed"])),
        "<br>".join(expected(number) for number in claim.numbers),
        "<br>".join(f"{number.name} **{shown(value)}**" for number, value in pairs),
        "<br>".join(met(number, value) for number, value in pairs),
        *(run["ended"][:10], run["commit"]),
    )
    comment = f"# {script}, {preset}: {hardware(run)}"
    return Line(f"| {' | '.join(cells)} |", f"{comment}\n{run['command']}")


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
    """What is expected, as text.

    >>> expected(Number("KL", ("kl",), "a leash", None, 15))
    'KL ≤ 15: a leash'
    """
    low, high = number.least, number.most
    bound = "" if high is None else f" ≤ {high:g}"
    if low is not None:
        bound = f" ≥ {low:g}" if high is None else f" {low:g} … {high:g}"
    return f"{number.name}{bound}: {number.why}"


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
    """Three decimals of what is no whole number.

    >>> shown(0.83333), shown(5)
    ('0.833', '5')
    """
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def link(paper: str) -> str:
    """To a paper on arXiv."""
    return f"[{paper}](https://arxiv.org/abs/{paper})"


def hardware(run: dict[str, Any]) -> str:
    """Cores, and devices that are no CPU; processes if there were several.

    >>> hardware({"cores": 2, "cpu": "A", "devices": {"TPU v5e": 8}, "processes": 1})
    '8 × TPU v5e, 2 cores (A)'
    """
    devices = [f"{n} × {kind}" for kind, n in run["devices"].items() if kind != "cpu"]
    parts = [*devices, f"{run['cores']} cores ({run['cpu']})"]
    if (shards := run["devices"].get("cpu", 1)) > 1:
        parts.append(f"as {shards} devices")
    if run["processes"] > 1:
        parts.append(f"{run['processes']} processes")
    return ", ".join(parts)


def duration(seconds: float, *, resumed: bool) -> str:
    """Seconds as people say them; of a resumed run the last process alone is timed.

    >>> duration(75.2, resumed=False), duration(4000, resumed=True)
    ('1 min 15 s', '> 1 h 6 min (resumed)')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes} min {s} s" if minutes else f"{s} s"
    text = f"{hours} h {minutes} min" if hours else text
    return f"> {text} (resumed)" if resumed else text
