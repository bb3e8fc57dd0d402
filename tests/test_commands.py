"""Every command of the documentation: its options exist, and a test runs its script.

What no test runs, for it takes too long or another machine, says in its block what it
needs: a comment that names cores, a GPU or a TPU.
"""

import functools
import inspect
import itertools
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from experiments import cli

ROOT = Path(__file__).parents[1]
READMES = [ROOT / place / "README.md" for place in (".", "tpu", "experiments")]
PAGES = [*READMES, *ROOT.glob("docs/**/*.md")]
OF_SHELL = {"&", "&&", "|", "<", ">"}
NEEDS = re.compile(r"#.*\b(cores?|GPU|TPU)\b")


def is_option(word: str) -> bool:
    """Whether it is read by the script, and not by the shell."""
    return word not in OF_SHELL


class Command(NamedTuple):
    """``python -m module args`` on a page."""

    where: str
    module: str
    args: tuple[str, ...]
    marked: bool  # its block says what it needs


def commands() -> Iterator[Command]:
    """Those of all pages, lines that go on joined, comments left out."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                words = shlex.split(line, comments=True)
                words = words[words.index("--") + 1 :] if "--" in words else words
                for i in [i for i, word in enumerate(words) if word == "-m"]:
                    where = f"{path.relative_to(ROOT)}: {line}"
                    args = itertools.takewhile(
                        lambda x: x not in OF_SHELL, words[i + 2 :]
                    )
                    marked = bool(NEEDS.search(block))
                    yield Command(where, words[i + 1], tuple(args), marked)


COMMANDS = [
    c for c in commands() if c.module.startswith(("experiments", "rlhf_jax", "tpu"))
]


class Parsed(Exception):
    """All options were understood."""


def parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a module's command line as far as its options are read."""

    def read_options(main: Any, presets: Any, *, description: str, **_: Any) -> None:
        cli._parse(presets, description, list(command.args))
        raise Parsed

    monkeypatch.setattr(cli, "run", read_options)
    read = functools.partial(read_and_stop, tyro.extras.subcommand_cli_from_dict)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", read)
    monkeypatch.setattr("rlhf_jax.report.command.metrics_files", stop)
    monkeypatch.setattr(sys, "argv", [command.module, *command.args])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it was imported before, too
        runpy.run_module(command.module, run_name="__main__")


def read_and_stop(read: Any, functions: dict[str, Any], **options: Any) -> None:
    """Reads options into functions that do nothing, or into a config."""
    read({name: silent(function) for name, function in functions.items()}, **options)
    raise Parsed


def stop(*args: Any) -> None:
    raise Parsed


def silent(function: Any) -> Any:
    """A function of the same options that does nothing; a config as it is."""
    if inspect.isclass(function):
        return function

    @functools.wraps(function)
    def nothing(*args: Any, **kwargs: Any) -> int:
        return 0

    return nothing


def test_the_pages_have_commands():
    assert len(COMMANDS) > 80


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.where[:70])
def test_options_exist(command: Command, monkeypatch: pytest.MonkeyPatch):
    if command.args == ("--help",):
        pytest.raises(SystemExit, parse, command, monkeypatch)
        return
    with pytest.raises(Parsed):
        parse(command, monkeypatch)


def test_an_option_that_is_gone_is_found(monkeypatch, capsys):
    wrong = Command(
        "", "experiments.sft", ("--data.path", "x", "--data.pth", "y"), False
    )
    with pytest.raises(SystemExit):
        parse(wrong, monkeypatch)
    assert "data.pth" in capsys.readouterr().err


def run_by_tests(module: str) -> bool:
    """Whether a test imports the script, or starts it."""
    package, _, name = module.rpartition(".")
    mentioned = re.compile(
        rf"\b{re.escape(module)}\b|from {package} import [^\n]*\b{name}\b"
        rf"|from {package} import \([^)]*\b{name}\b"
    )
    tests = ROOT.glob("tests/**/*.py")
    return any(mentioned.search(path.read_text(encoding="utf-8")) for path in tests)


def test_scripts_are_run_by_a_test_or_say_what_they_need():
    alone = {c.module for c in COMMANDS if not run_by_tests(c.module)}
    unmarked = [c.where for c in COMMANDS if c.module in alone and not c.marked]
    assert not unmarked, "\n".join(unmarked)
