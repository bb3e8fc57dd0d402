"""What the scripts share: their data, and what one stage leaves for the next.

A stage's run directory holds ``model.json``, ``tokenizer/`` and ``checkpoints/``; the
next stage starts from the directory.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from rlhf_jax import checkpoint
from rlhf_jax.data import Row, load_tokenizer, read_rows, rename_columns, save_tokenizer
from rlhf_jax.data.sources import TFDS_PREFIX
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel import Devices
from rlhf_jax.rundir import load_json, save_json
from rlhf_jax.terminal import memory_estimate, print_plan
from rlhf_jax.types import Params

MODEL_FILE = "model.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from."""

    path: str
    """A .jsonl, .csv or .parquet file, plain or .gz; or tfds:NAME/CONFIG:SPLIT, with a
    split such as train or train[:10%]."""
    eval_path: str | None = None
    """Examples to evaluate on; none holds some of the training examples back."""
    eval_fraction: float = 0.05
    """Share of the examples held back where there is no eval_path."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Columns to rename: the file's own name, then the one that the script expects."""
    too_long: TooLong = "error"
    """Rows that do not fit: stop there, or keep the end of their prompts."""
    data_dir: Path | None = None
    """Where TFDS data sets are built; none is TFDS's own default."""

    def __post_init__(self):
        if not 0 < self.eval_fraction < 1:
            raise UserError(
                f"data.eval_fraction = {self.eval_fraction}: expected a share between "
                "0 and 1"
            )


def read_data(
    config: DataConfig, parse: Callable[[list[Row]], list[Item]], *, seed: int
) -> tuple[list[Item], list[Item]]:
    """(training, held-out) examples; the same seed holds the same ones back."""
    examples = parse(_read(config, config.path))
    if config.eval_path is not None:
        return examples, parse(_read(config, config.eval_path))
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = max(1, round(config.eval_fraction * len(examples)))
    shuffled = [examples[i] for i in order]
    return shuffled[held_out:], shuffled[:held_out]


def _read(config: DataConfig, path: str) -> list[Row]:
    split = None
    if path.startswith(TFDS_PREFIX) and path.count(":") > 1:
        name, split = path.removeprefix(TFDS_PREFIX).split(":", 1)
        path = TFDS_PREFIX + name
    rows = read_rows(path, split=split, data_dir=config.data_dir)
    return rename_columns(rows, config.columns) if config.columns else rows


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage left: a network, its tokenizer, its parameters."""

    model: TransformerConfig
    tokenizer: PreTrainedTokenizerFast
    params: Params
    num_outputs: int  # of a reward model's head; 0 for a policy


def save_model_files(
    run_dir: Path,
    model: TransformerConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_outputs: int = 0,
    params_path: str = "params",
) -> None:
    """Writes what a later stage needs besides the checkpoints.

    Args:
      run_dir: of the stage.
      model: the network.
      tokenizer: what its tokens mean.
      num_outputs: of a reward model's head; 0 for a policy.
      params_path: where in the checkpoints the network's parameters are.
    """
    values = {
        "kind": "reward" if num_outputs else "policy",
        "num_outputs": num_outputs,
        "params_path": params_path,
        "model": dataclasses.asdict(model),
    }
    save_json(run_dir / MODEL_FILE, values)
    save_tokenizer(tokenizer, run_dir / TOKENIZER)


def load_stage(
    run_dir: Path, kind: Literal["policy", "reward"], *, option: str
) -> Stage:
    """Loads the latest checkpoint of an earlier stage.

    Raises:
      UserError: the directory has no such stage, or of the other kind; names the
        option that asked for it.
    """
    if not (run_dir / MODEL_FILE).is_file():
        raise UserError(
            f"{option} {run_dir}: no {MODEL_FILE} there; give the run directory of a "
            f"finished {kind} stage"
        )
    saved = load_json(run_dir / MODEL_FILE)
    if saved["kind"] != kind:
        raise UserError(
            f"{option} {run_dir}: holds a {saved['kind']} model, expected a {kind} "
            "model; give the run directory of that stage"
        )
    params = checkpoint.restore_params(run_dir / CHECKPOINTS, saved["params_path"])
    params.pop("value_head", None)  # a critic on the policy's trunk is not the policy
    return Stage(
        model=TransformerConfig(**saved["model"]),
        tokenizer=load_tokenizer(run_dir / TOKENIZER),
        params=params,
        num_outputs=saved["num_outputs"],
    )


def resume_state(run_dir: Path, state: Any, loader: Any) -> tuple[Any, int | None]:
    """(state, step) of the latest checkpoint, the loader moved to its place.

    The state as it is and None where there is no checkpoint yet.
    """
    if checkpoint.latest_step(run_dir / CHECKPOINTS) is None:
        return state, None
    state, host_state, step = checkpoint.restore(run_dir / CHECKPOINTS, state)
    loader.set_state(host_state["loader"])
    return state, step


def save_state(run_dir: Path, step: int, state: Any, loader: Any) -> None:
    """Saves a checkpoint of the (unreplicated) state and the loader's place."""
    checkpoint.save(
        run_dir / CHECKPOINTS,
        step,
        state,
        host_state={"loader": loader.get_state()},
        keep=2,
    )


def count_params(tree: Any) -> int:
    """Number of parameters of a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(tree))


def show_plan(
    title: str,
    model: TransformerConfig,
    *,
    trained: int,
    frozen: int,
    steps: int,
    rows: int,
    length: int,
    devices: Devices,
) -> None:
    """Prints what is going to run, with an estimate of the memory a device needs."""
    memory = memory_estimate(
        trained=trained,
        frozen=frozen,
        tokens=rows * length // len(devices),
        length=length,
        d_model=model.d_model,
        layers=model.n_layers,
        heads=model.n_heads,
        vocab_size=model.vocab_size,
        itemsize=4 if model.dtype == "float32" else 2,
    )
    print_plan(
        title,
        parameters=trained,
        steps=steps,
        tokens_per_step=rows * length,
        devices=devices,
        memory=memory,
    )


def eos_id(tokenizer: Any) -> int:
    """The token that ends a response; every tokenizer that is loaded here has one."""
    return tokenizer.eos_token_id


def pad_id(tokenizer: Any) -> int:
    """What stands in padding: <pad>, or EOS where there is none (masks do not care)."""
    pad = tokenizer.pad_token_id
    return eos_id(tokenizer) if pad is None else pad


class TokenMeter:
    """Tokens a second between readings; the first one includes compilation."""

    def __init__(self):
        self._since, self._tokens = time.perf_counter(), 0
        self.last = float("nan")

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        """Tokens a second since the last reading."""
        now = time.perf_counter()
        self.last = self._tokens / (now - self._since)
        self._since, self._tokens = now, 0
        return self.last
