"""``report.html``: all that runs left, on one page that needs no network."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from rlhf_jax.processes import is_first
from rlhf_jax.report import numbers, rows
from rlhf_jax.report.curves import COLOURS
from rlhf_jax.report.reading import read_runs
from rlhf_jax.report.texts import clean, signed
from rlhf_jax.rundir import RunError

PAGE_FILE = "report.html"
_TITLES = {
    "results": ("result", "Result"),
    "frontiers": ("frontier", "Frontier"),
    "curves": ("curves", "Curves"),
    "samples": ("samples", "Samples"),
    "calibrations": ("calibration", "Calibration"),
    "faults": ("faults", "Faults and alarms"),
    "quarantined": ("quarantine", "Rows put aside"),
    "options": ("options", "Configuration"),
}


def write_page(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes one HTML file about one run, or about several side by side.

    No reference. Sections are there where their files are: what samples were like
    before and after, rewards over √KL, curves, samples with the KL of their tokens, the
    reward model's calibration, faults, rows put aside, how it was made, and options, of
    several runs those that differ. Equal runs give equal bytes. Of several processes
    the first one writes.

    Args:
      run_dirs: directories of runs, six at most; what lies one directory below is of
        their stages.
      out: the file; None: ``report.html``, in the run's directory if it is one, else
        here.

    Returns:
      The path of the page.

    Raises:
      RunError: a directory has nothing to show, a file in it cannot be read, or the
        page not be written; too many runs.

    >>> import tempfile
    >>> run = Path(tempfile.mkdtemp())
    >>> _ = (run / "metrics.jsonl").write_text('{"step": 1, "sft/loss": 2.5}\\n')
    >>> page = write_page([run]).read_text()
    >>> "Supervised fine-tuning: loss" in page, "<script" in page
    (True, False)
    """
    if not 1 <= len(run_dirs) <= len(COLOURS):
        raise RunError(
            f"{len(run_dirs)} runs: expected one to {len(COLOURS)}, as many as there "
            "are colours that everybody can tell apart"
        )
    path = Path(
        out or (Path(run_dirs[0], PAGE_FILE) if len(run_dirs) == 1 else PAGE_FILE)
    )
    if not is_first():
        return path
    text = _page(run_dirs)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}): choose another place with "
            "--out"
        ) from error
    return path


def _page(run_dirs: Sequence[str | Path]) -> str:
    runs = read_runs(run_dirs)
    runs = [run._replace(name=clean(run.name)) for run in runs]
    found = {
        "results": numbers.results(runs),
        "frontiers": numbers.frontiers(runs),
        "curves": numbers.curves(runs),
        "samples": rows.samples(runs),
        "calibrations": numbers.calibrations(runs),
        "faults": rows.faults(runs),
        "quarantined": rows.quarantined(runs),
        "options": rows.options(runs),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "static"),
        autoescape=True,  # what a policy says is hostile
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    names = [run.name for run in runs]
    return environment.get_template("page.html").render(
        found,
        names=names,
        open_rows=rows.OPEN,
        colours={name: i for i, name in enumerate(names, 1)},
        sections=[title for name, title in _TITLES.items() if found[name]],
    )
