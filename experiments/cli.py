"""The command line of the scripts: options from a config, errors in one line."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import tyro

from experiments.provenance import programs, recorded
from experiments.runs import RunConfig
from experiments.stops import one_script
from rlhf_jax import processes
from rlhf_jax.cpu import prepare_cpu
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import config_texts
from rlhf_jax.stopping import USER_ERROR
from rlhf_jax.watchdog import watching

Config = TypeVar("Config")


def run(
    main: Callable[[Config], Any],
    presets: Mapping[str, Config],
    *,
    description: str,
    several: bool = False,
) -> None:
    """Reads a config from the command line and runs ``main`` with it.

    Every field of the config is an option; ``--preset`` says whose values they start
    from, the first preset's by default. What a person can mend ends in one line and
    exit code 2; anything else is a defect, and shows its traceback.

    With ``several`` it may be one of several processes (`processes.initialize`): they
    agree on their options, the first one shows progress, and each watches the others.

    A script that has a run directory and ends well leaves provenance.json there.
    """
    prepare_cpu()
    try:
        config = _parse(presets, description, sys.argv[1:])
        processes.initialize()
        with _among_others(config, several=several), one_script():
            recorded(main, config, preset=_preset(presets, sys.argv[1:])[0])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


@contextlib.contextmanager
def _among_others(config: Any, *, several: bool) -> Iterator[None]:
    """Agreed with the other processes, watched, and silent if not the first."""
    if processes.count() > 1 and not several:
        raise UserError(
            "this script runs in one process: expected no "
            f"{processes.COORDINATOR} in its environment"
        )
    run_dir = stall = None
    if isinstance(config, RunConfig):
        run_dir, stall = config.run_dir, config.stall
    with contextlib.ExitStack() as stack:
        stack.enter_context(watching(run_dir, stall_s=stall))
        if processes.count() > 1:
            processes.agree(config_texts(config) | programs())
        if not processes.is_first():
            silent = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silent))
        yield


def _preset(presets: Mapping[str, Any], args: list[str]) -> tuple[str, list[str]]:
    """The preset that is asked for, and all other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=next(iter(presets)))
    chosen, rest = parser.parse_known_args(args)
    if chosen.preset not in presets:
        raise UserError(
            f"--preset {chosen.preset}: no such preset; expected one of "
            f"{', '.join(presets)}"
        )
    return chosen.preset, rest


def _parse(presets: Mapping[str, Config], description: str, args: list[str]) -> Config:
    preset, rest = _preset(presets, args)
    if len(presets) > 1:
        names = ", ".join(presets)
        description += f"\n\n--preset NAME starts from other values: {names}."
    default = presets[preset]
    spec = sys.modules["__main__"].__spec__  # of python -m; else there is none
    prog = None if spec is None else f"python -m {spec.name}"
    return tyro.cli(
        type(default), prog=prog, default=default, args=rest, description=description
    )
