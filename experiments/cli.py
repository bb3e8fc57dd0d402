"""The command line of the scripts: options from a config, errors in one line."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tyro

from rlhf_jax.cpu import prepare_cpu
from rlhf_jax.errors import UserError
from rlhf_jax.stopping import USER_ERROR

Config = TypeVar("Config")


def run(
    main: Callable[[Config], Any], presets: Mapping[str, Config], *, description: str
) -> None:
    """Reads a config from the command line and runs ``main`` with it.

    Every field of the config is an option; ``--preset`` says whose values they start
    from, the first preset's by default. What a person can mend ends in one line and
    exit code 2; anything else is a defect, and shows its traceback.
    """
    prepare_cpu()
    try:
        main(_parse(presets, description, sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


def _parse(presets: Mapping[str, Config], description: str, args: list[str]) -> Config:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=next(iter(presets)))
    chosen, rest = parser.parse_known_args(args)
    if chosen.preset not in presets:
        raise UserError(
            f"--preset {chosen.preset}: no such preset; expected one of "
            f"{', '.join(presets)}"
        )
    if len(presets) > 1:
        names = ", ".join(presets)
        description += f"\n\n--preset NAME starts from other values: {names}."
    default = presets[chosen.preset]
    spec = sys.modules["__main__"].__spec__  # of python -m; else there is none
    prog = None if spec is None else f"python -m {spec.name}"
    return tyro.cli(
        type(default), prog=prog, default=default, args=rest, description=description
    )
