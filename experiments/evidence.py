"""Lines of experiments/README.md, written from what runs have left of themselves.

  python -m experiments.evidence runs/quickstart runs/grpo

Reads provenance.json, which every script leaves in its run directory when it has ended
well, and the numbers beside it. Lines of other scripts and presets, and what stands
above the table, are kept. experiments/claims.py has what scripts are expected to find.
"""

import dataclasses
import re
from pathlib import Path

import tyro

from experiments import cli
from experiments.claims import CLAIMS
from experiments.evidence_lines import HEADER, Key, Line, make_line
from experiments.provenance import PROVENANCE
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import CONFIG_FILE, load_json

COMMANDS = "\n## Commands\n\n```sh\n"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs, and the page that gets their lines."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories of scripts that have ended well."""
    out: Path = Path("experiments/README.md")
    """The page; made where there is none."""


def main(config: Config) -> None:
    """Reads the runs and writes the page."""
    if not config.runs:
        raise UserError("no run directory: expected one or more, such as runs/sft")
    new: dict[Key, Line] = {}
    for run_dir in config.runs:
        key, line = read_run(run_dir)
        if key in new:
            raise UserError(
                f"{run_dir}: the second run of {' '.join(key)}: expected one of a "
                "script and preset"
            )
        new[key] = line
    above, lines = read_page(config.out)
    lines |= new
    keys = [key for key in CLAIMS if key in lines]
    keys += [key for key in lines if key not in CLAIMS]  # a claim that is gone
    rows = "".join(f"{lines[key].rows}\n" for key in keys)
    commands = "\n".join(f"{lines[key].command}\n" for key in keys)
    text = f"{above}{HEADER}{rows}{COMMANDS}{commands}```\n"
    config.out.write_text(text, encoding="utf-8")
    for key in new:
        print(f"{config.out}: {' '.join(key)}")


def read_run(run_dir: Path) -> tuple[Key, Line]:
    """A run's place in the page, and its line.

    Raises:
      UserError: it is no run, has not ended well, or nothing is known of its script.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir}: no {CONFIG_FILE} there: expected a run directory")
    if not (run_dir / PROVENANCE).is_file():
        raise UserError(
            f"{run_dir}: no {PROVENANCE} there: it has not ended, or was made by an "
            "earlier version, or as a stage of another run: run its script to its end"
        )
    run = load_json(run_dir / PROVENANCE)
    key = run["script"].removeprefix("experiments."), run["preset"]
    if key not in CLAIMS:
        raise UserError(
            f"{run_dir}: {run['script']} with preset {run['preset']} is not in "
            "experiments/claims.py: add what it is expected to find"
        )
    return key, make_line(key, run, CLAIMS[key], run_dir)


def read_page(path: Path) -> tuple[str, dict[Key, Line]]:
    """(what stands above the table, its lines); nothing where there is no page yet."""
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: no such folder: run it in the repository")
    if not path.exists():
        return "", {}
    above, header, below = path.read_text(encoding="utf-8").partition(HEADER)
    table, commands, block = below.partition(COMMANDS)
    if not header or not commands:
        raise UserError(
            f"{path}: has no table of runs with commands below: name another --out"
        )
    # A row of a run, and those of its other numbers, which do not name it again.
    runs = re.split(r"\n(?!\|  \|)", table.strip("\n")) if table else []
    typed = block.removesuffix("```\n").split("\n\n") if runs else []
    if len(runs) != len(typed):
        raise UserError(
            f"{path}: {len(runs)} runs and {len(typed)} commands: expected a command "
            "for each run, in the same order"
        )
    return above, {
        _key(rows): Line(rows, command.strip("\n"))
        for rows, command in zip(runs, typed, strict=True)
    }


def _key(rows: str) -> Key:
    """Script and preset of a run's rows."""
    found = re.match(r"\| \[(\w+)\]\(\w+\.py\) \| (\w+) \|", rows)
    if found is None:
        raise UserError(f"expected a row of a run, found {rows[:60]!r}: correct it")
    return found[1], found[2]


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
