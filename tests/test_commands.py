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
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from experiments import cli
from rlhf_jax.data import write_rows

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
            yield from in_block(path, block)


def in_block(path: Path, block: str) -> Iterator[Command]:
    """Those of a block of a page."""
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        words = shlex.split(line, comments=True)
        words = words[words.index("--") + 1 :] if "--" in words else words
        for i in [i for i, word in enumerate(words) if word == "-m"]:
            where = f"{path.relative_to(ROOT)}: {line}"
            args = itertools.takewhile(lambda x: x not in OF_SHELL, words[i + 2 :])
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


# The commands for data of one's own, in their order: what one writes the next reads.

FEW = "--batch-size 8 --devices 1 --seed 1"
ASKED = f"{FEW} --prompt-length 8 --eval-samples 8"
ROLLOUTS = f"{ASKED} --episodes 16"
SMALLER = {
    "rlhf_jax.data": "",
    "experiments.sft": f"{FEW} --epochs 1 --model.vocab-size 280 --model.d-model 8 "
    "--model.n-layers 1 --model.n-heads 1 --model.n-kv-heads 1 --model.d-head 8 "
    "--model.d-ff 16 --model.scan-unroll 1",
    "experiments.reward_model": f"{FEW} --epochs 1",
    "experiments.policy": f"{ROLLOUTS} --algorithm.sampling.max-new-tokens 4",
    "experiments.preference": FEW,
    "experiments.distill": f"{ASKED} --updates 2 "
    "--distillation.sampling.max-new-tokens 4",
    "experiments.online_preference": f"{ROLLOUTS} --online.sampling.max-new-tokens 4",
    "experiments.best_of_n": f"{FEW} --prompt-length 8 --prompts 8 "
    "--sampling.max-new-tokens 4 --sampling.completions 2",
}


def own_data() -> list[Command]:
    """The block of README.md below "Your own data"."""
    path = ROOT / "README.md"
    below = path.read_text(encoding="utf-8").partition("## Your own data\n")[2]
    return [*in_block(path, below.partition("```sh\n")[2].partition("```")[0])]


def write_own_data() -> None:
    """The files that the commands name, of a few rows each."""
    asked = [{"prompt": f"{i} + 1 ="} for i in range(16)]
    answered = [row | {"completion": f" {i + 1}"} for i, row in enumerate(asked)]
    sides = [{"chosen": f" {i + 1}", "rejected": f" {i}"} for i in range(16)]
    files = {
        "prompts": asked,
        "demonstrations": answered,
        "preferences": [row | pair for row, pair in zip(asked, sides, strict=True)],
        "labels": [row | {"label": i % 2} for i, row in enumerate(answered)],
    }
    for name, rows in files.items():
        write_rows(rows, f"{name}.jsonl")


@pytest.mark.slow
def test_own_data_goes_through_all_stages(tmp_path, monkeypatch):
    """README's commands as they stand, with options that make them small."""

    def run(main: Any, presets: Any, *, description: str, **_: Any) -> None:
        main(cli._parse(presets, description, sys.argv[1:]))

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.chdir(tmp_path)
    write_own_data()
    commands, made = own_data(), []
    assert {c.module for c in commands} == {*SMALLER}
    for module, args in [(c.module, c.args) for c in commands]:
        if "runs/small" in args and "runs/sft" in made:  # one's own smaller policy
            shutil.copytree("runs/sft", "runs/small")
        words = [module, *args, *SMALLER[module].split()]
        monkeypatch.setattr(sys, "argv", words)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # imported before, too
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as ended:
                assert ended.code == 0, module
        if "--run-dir" in args:
            made.append(args[args.index("--run-dir") + 1])
            left = [
                *Path(made[-1]).glob("checkpoints/*"),
                *Path(made[-1]).glob("*.png"),
            ]
            assert left, f"{module}: neither a checkpoint nor a picture"
    assert len(made) == len(commands) - 1  # the first one looks at a file
