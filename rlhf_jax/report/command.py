"""The command: pictures and a page of runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.report.curves import metrics_files, write_report
from rlhf_jax.report.page import write_page
from rlhf_jax.rundir import RunError


def main(args: Sequence[str]) -> int:
    """Writes the picture of each run and a page of all; returns the exit code.

    No reference. The page is ``report.html``, in the directory of a single run, of
    several in the current one; ``--out`` names another file.

    >>> main([])
    usage: python -m rlhf_jax.report RUN [RUN …] [--out FILE]
    2
    """
    usage = "python -m rlhf_jax.report RUN [RUN …] [--out FILE]"
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("runs", nargs="*", help="directories of runs")
    parser.add_argument("--out", help="the page's file")
    asked = parser.parse_args(args)
    if not asked.runs:
        print(f"usage: {usage}")
        return 2
    try:
        for run in asked.runs:
            if metrics_files(Path(run)):
                print(write_report(run))
        print(write_page(asked.runs, asked.out))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
