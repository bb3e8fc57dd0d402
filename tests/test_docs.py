"""Every public name has a docstring, says where it is from, and stands in docs/api.md.

Public is what a package exports by ``__all__``, and of modules that api.md lists what
has no underscore.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rlhf_jax

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rlhf_jax.__file__).parent
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"automodule:: (\S+)", API))
ONE_BY_ONE = set(re.findall(r"autofunction:: (\S+)", API))
# An arXiv or doi number, authors with a year, or that there is none; or where it is.
REFERENCE = re.compile(
    r"arXiv:\d{4}\.\d{4,5}|doi:10\.|[A-Z]\w+(?: [\w. ]+)? (?:19|20)\d\d"
    r"|[Nn]o\s+(?:reference|paper|arXiv)|papers are (?:named|those)|Intervals as for"
)


def modules() -> Iterator[ModuleType]:
    """All public modules, without running any that is a command."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            yield importlib.import_module(".".join(parts))


def public(module: ModuleType) -> dict[str, Any]:
    """What a module exports, or if api.md lists it what is defined there."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    if module.__name__ not in LISTED:
        return {}
    return {
        name: x
        for name, x in vars(module).items()
        if not name.startswith("_")
        and getattr(x, "__module__", None) == module.__name__
        and (inspect.isclass(x) or inspect.isfunction(x))
    }


def complaints(name: str, thing: Any) -> Iterator[str]:
    """What a public name's docstring lacks; of classes no reference is asked."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # aliases and constants are documented where they are made
    text = inspect.getdoc(thing) or ""
    generated = f"{thing.__name__}("  # what dataclass writes where there is none
    if not text or (inspect.isclass(thing) and text.startswith(generated)):
        yield f"{name}: no docstring"
    elif inspect.isfunction(thing) and not REFERENCE.search(text):
        yield f'{name}: no reference; where there is none, "No reference."'


def test_every_public_name_has_a_docstring_and_a_reference():
    found = [
        line
        for module in modules()
        for name, thing in public(module).items()
        for line in complaints(f"{module.__name__}.{name}", thing)
    ]
    assert not found, "\n".join(found)


def test_every_public_name_is_in_the_api():
    missing = []
    for module in modules():
        if module is rlhf_jax or module.__name__ in LISTED:
            continue  # what it exports is listed where it is from, below
        missing += [
            f"{module.__name__}.{name}"
            for name in getattr(module, "__all__", [])
            if f"{module.__name__}.{name}" not in ONE_BY_ONE
        ]
    documented = map(importlib.import_module, LISTED)
    listed = {id(x) for module in documented for x in public(module).values()}
    missing += [x for x in rlhf_jax.__all__ if id(getattr(rlhf_jax, x)) not in listed]
    assert not missing, f"docs/api.md lacks {', '.join(missing)}"


def test_modules_at_the_top_are_in_the_api():
    top = {m.__name__ for m in modules() if m.__name__.count(".") == 1}
    assert not top - LISTED, f"docs/api.md lacks {sorted(top - LISTED)}"


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (None, "no docstring"),
        ("Adds one.", "no reference"),
        ("Adds one. No reference.", None),
        ("Adds one.\n\nOuyang et al. 2022, arXiv:2203.02155.", None),
        ("Adds one.\n\nLuce 1959 (no arXiv number).", None),
    ],
)
def test_what_is_missing_is_said(text: str | None, missing: str | None):
    def add(x: int) -> int:
        return x + 1

    add.__doc__ = text
    found = list(complaints("add", add))
    assert (missing is None and not found) or (missing and missing in found[0])
