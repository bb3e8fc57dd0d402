"""Imports go one way, and a few modules and functions stay out of the package.

The modules are read with ``ast``, never imported.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlhf_jax

PACKAGE = Path(rlhf_jax.__file__).parent

# Who may import whom, by the first name under rlhf_jax. errors is one exception class.
CORE = {
    "types": set(),
    "errors": set(),
    "masking": {"types"},
    "rows": {"types"},
    "ops": {"types", "masking", "rows"},
    "models": {"types", "masking", "rows", "errors"},
    "sampling": {"types", "masking", "ops", "errors"},
    "rewards": {"types", "masking", "ops", "errors"},
    # optim knows of no step and no model: a step's config nests its OptimConfig.
    "steps": {"types", "masking", "ops", "sampling", "rewards", "errors", "optim"},
}

# Pickles run code when they are read; the frameworks are oracles of tests.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "torch", "tensorflow"}
DEVICE_FUNCTIONS = {"pmap", "shard_map"}  # at home in parallel.py


def layer_of(module: str) -> str:
    """rlhf_jax.ops.kl -> ops; rlhf_jax itself -> the empty string."""
    return module.partition(".")[2].partition(".")[0]


def may_import(layer: str, other: str) -> bool:
    """The host side (data, evaluation, checkpoint, …) may import all but the steps."""
    if not layer or layer == other:
        return True
    return other in CORE[layer] if layer in CORE else other not in ("", "steps")


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [node.module] if node.module else []
            if node.level:
                up = node.level - is_package
                package = module.split(".")
                parts = package[: len(package) - up] + parts
            for alias in node.names:
                yield node.lineno, ".".join([*parts, alias.name])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "import_module",
            "importlib.import_module",
        ):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What a module of the package does that it must not, one line each."""
    tree, layer, found = ast.parse(source), layer_of(module), []
    for line, name in imported(tree, module, is_package):
        root = name.partition(".")[0]
        if root in FORBIDDEN_MODULES:
            found.append(f"{module}:{line}: imports {root}")
        if root == "experiments":
            found.append(f"{module}:{line}: imports experiments")
        if root == "rlhf_jax" and not may_import(layer, layer_of(name)):
            found.append(f"{module}:{line}: {layer} imports {name}")
        if DEVICE_FUNCTIONS & set(name.split(".")) and layer != "parallel":
            found.append(f"{module}:{line}: imports {name} outside parallel.py")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DEVICE_FUNCTIONS:
            if layer != "parallel":
                found.append(f"{module}:{node.lineno}: {node.attr} outside parallel.py")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def test_the_package_obeys():
    found = [
        line
        for module, path in modules()
        for line in violations(
            module, path.read_text(), is_package=path.name == "__init__.py"
        )
    ]
    assert not found, "\n".join(found)


def test_the_walk_sees_the_package():
    names = {module for module, _ in modules()}
    assert {"rlhf_jax", "rlhf_jax.types", "rlhf_jax.ops.kl", "rlhf_jax.ops"} <= names


def test_arrows_form_no_cycle_in_the_core():
    order: list[str] = []
    while len(order) < len(CORE):
        free = [n for n in CORE if n not in order and CORE[n] & set(CORE) <= {*order}]
        assert free, f"a cycle among {set(CORE) - set(order)}"
        order += free


@pytest.mark.parametrize(
    "module, source, complaint",
    [
        ("rlhf_jax.ops.kl", "from rlhf_jax.models import heads", "ops imports"),
        ("rlhf_jax.ops.kl", "import rlhf_jax.sampling.generate", "ops imports"),
        ("rlhf_jax.ops.kl", "from ..steps import policy", "ops imports"),
        ("rlhf_jax.ops.kl", "from rlhf_jax import gae_advantages", "ops imports"),
        ("rlhf_jax.ops.kl", "def f():\n  import rlhf_jax.data", "ops imports"),
        ("rlhf_jax.masking", "from rlhf_jax.ops import kl", "masking imports"),
        ("rlhf_jax.types", "import rlhf_jax.masking", "types imports"),
        ("rlhf_jax.models.heads", "from rlhf_jax.ops import kl", "models imports"),
        ("rlhf_jax.sampling.generate", "from rlhf_jax import models", "sampling imp"),
        ("rlhf_jax.sampling.generate", "from rlhf_jax.steps import sft", "sampling i"),
        ("rlhf_jax.rewards.learned", "import rlhf_jax.sampling", "rewards imports"),
        ("rlhf_jax.steps.policy", "from rlhf_jax.models import heads", "steps imports"),
        ("rlhf_jax.data.loader", "from rlhf_jax import steps", "data imports"),
        ("rlhf_jax.tracking", "import experiments.summarise", "imports experiments"),
        ("rlhf_jax", "from experiments import toys", "imports experiments"),
        ("rlhf_jax.checkpoint", "import pickle", "imports pickle"),
        ("rlhf_jax.models.hf", "from torch.nn import Linear", "imports torch"),
        ("rlhf_jax.data.sources", "import tensorflow as tf", "imports tensorflow"),
        ("rlhf_jax.x", "m = importlib.import_module('dill')", "imports dill"),
        ("rlhf_jax.steps.sft", "step = jax.pmap(step)", "pmap outside"),
        ("rlhf_jax.steps.sft", "from jax import shard_map", "outside parallel.py"),
        ("rlhf_jax.novelty", "import rlhf_jax.steps.sft", "novelty imports"),
    ],
)
def test_the_checker_complains(module, source, complaint):
    assert any(complaint in line for line in violations(module, source))


@pytest.mark.parametrize(
    "module, source, is_package",
    [
        ("rlhf_jax", "from rlhf_jax.steps import sft_step", True),
        ("rlhf_jax.ops", "from .kl import kl_estimate", True),
        ("rlhf_jax.ops.kl", "from .logits import top_k_mask", False),
        ("rlhf_jax.ops.kl", "from rlhf_jax.masking import masked_sum", False),
        ("rlhf_jax.steps.policy", "from rlhf_jax.sampling import generate", False),
        ("rlhf_jax.evaluation.kl", "from rlhf_jax.models import heads", False),
        ("rlhf_jax.data.sources", "import tensorflow_datasets as tfds", False),
        ("rlhf_jax.parallel", "step = jax.pmap(step)", False),
    ],
)
def test_the_checker_lets_pass(module, source, is_package):
    assert not violations(module, source, is_package=is_package)
