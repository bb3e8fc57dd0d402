"""Nothing that is loaded runs code: no source asks for it, and no loading does it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from rlhf_jax import checkpoint
from rlhf_jax.data import save_tokenizer, train_tokenizer
from rlhf_jax.models import CausalLM, TransformerConfig, init_params
from rlhf_jax.models.hf import save_pretrained
from rlhf_jax.stages import CHECKPOINTS, save_model_files

pytestmark = pytest.mark.fault(26)

ROOT = Path(__file__).parents[1]
SOURCES = ("rlhf_jax", "experiments", "tpu")
# Each of them calls what a file names.
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
MODULES |= {"marshal", "pickle5", "jsonpickle"}
LOADERS = ("torch.load", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle")
LOADERS += ("pd.read_pickle", "importlib.reload", "runpy.run_path")


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        whole = [node.module or ""]
        return whole + [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("__import__", "import_module")
    ):
        return [str(x.value) for x in node.args if isinstance(x, ast.Constant)]
    return []


def complaints(source: str) -> Iterator[str]:
    """What a file does that would run what it reads, one line each."""
    for node in ast.walk(ast.parse(source)):
        for name in imported(node):
            if MODULES & {*name.split(".")} or name in LOADERS:
                yield f"{getattr(node, 'lineno', 0)}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "compile", *LOADERS):
            yield f"{node.lineno}: calls {called}"
        for option in node.keywords:
            off = isinstance(option.value, ast.Constant) and option.value.value is False
            if option.arg in ("allow_pickle", "trust_remote_code") and not off:
                yield f"{node.lineno}: {option.arg} = {ast.unparse(option.value)}"


def test_no_source_asks_for_code():
    files = [path for part in SOURCES for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 150
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in complaints(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import dill as d",
        "from joblib import load",
        "from multiprocessing import reduction, shelve",
        "import importlib; importlib.import_module('cloudpickle')",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=asked)",
        "eval(text)",
        "exec(text, {})",
        "yaml.load(file)",
        "from_pretrained(path, trust_remote_code=True)",
        "from_pretrained(path, trust_remote_code=config.trust)",
    ],
)
def test_the_checker_complains(source):
    assert [*complaints(source)]


@pytest.mark.parametrize(
    "source", ["model.eval()", "re.compile(x)", "np.load(x, allow_pickle=False)"]
)
def test_the_checker_lets_pass(source):
    assert not [*complaints(source)]


# What is loaded below may import modules, but may not look up what a pickle names.
LOAD = """
import pickle, sys
from pathlib import Path

from rlhf_jax.data import read_records, read_rows
from rlhf_jax.stages import load_policy

folder, watched = Path(sys.argv[1]), []

def refuse(event, args):
    if event == "pickle.find_class":
        raise SystemExit(f"a pickle asks for {args}")

sys.addaudithook(refuse)
for name in sys.argv[2:]:
    if name == "pickle":
        pickle.loads(pickle.dumps(Path()))
    elif "." in name:
        assert len(read_rows(folder / name)) == read_records(folder / name).num_rows
    else:
        load_policy(folder / name)
print("loaded")
"""
MODEL = TransformerConfig(
    vocab_size=300,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    d_ff=16,
    max_length=40,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An earlier stage, a checkpoint of transformers, and data files."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("loaded")
    params = init_params(CausalLM(MODEL), key=jax.random.key(0))
    tokenizer = train_tokenizer(["a warm film"], vocab_size=300)
    (root / "stage").mkdir()
    save_model_files(root / "stage", MODEL, tokenizer, began=None)
    path = root / "stage" / CHECKPOINTS
    checkpoint.save(path, 1, {"params": params}, host_state={}, keep=1)
    save_pretrained(root / "transformers", params, MODEL)
    save_tokenizer(tokenizer, root / "transformers")
    lines = b'{"prompt": "2 + 2 ="}\n{"prompt": "3 + 3 ="}\n'
    (root / "rows.jsonl").write_bytes(lines)
    (root / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    (root / "rows.csv").write_bytes(b"prompt\n2 + 2 =\n")
    pq.write_table(pa.table({"prompt": ["2 + 2 ="]}), root / "rows.parquet")
    return root


def loaded(folder: Path, *names: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LOAD, str(folder), *names]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_nothing_is_unpickled_while_loading(folder):
    files = ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"]
    done = loaded(folder, "stage", "transformers", *files)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


def test_the_hook_would_tell(folder):
    done = loaded(folder, "pickle")
    assert done.returncode == 1 and "a pickle asks for" in done.stderr
