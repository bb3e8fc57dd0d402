"""What is done about people's judgements: ``python -m rlhf_jax.feedback COMMAND``."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import judging, page, report

RunDir = tyro.conf.Positional[Path]


def serve(config: Annotated[page.ServeConfig, tyro.conf.arg(name="")]) -> None:
    """Serves a page on which people rank or rate completions."""
    page.serve(config)


def export(run_dir: RunDir, /, out: Path | None = None) -> None:
    """Writes what was judged on the page as JSONL.

    Args:
      run_dir: Of the labels.
      out: Folder of the files; none is the run directory.
    """
    for name, rows in page.export(run_dir, out).items():
        print(f"{out or run_dir}/{name}: {rows} rows")


def agreement(config: Annotated[report.Config, tyro.conf.arg(name="")]) -> None:
    """Says how far annotators agree, who is careless, and what they prefer together."""
    report.main(config)


def judge(config: Annotated[judging.Config, tyro.conf.arg(name="")]) -> None:
    """Asks a model instead of people: a question, principles, or a rubric."""
    judging.main(config)


def main(args: list[str]) -> None:
    """Runs a command; what a person can mend ends in one line and exit code 1."""
    commands = {
        "serve": serve,
        "export": export,
        "agreement": agreement,
        "judge": judge,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m rlhf_jax.feedback", args=args
        )
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
