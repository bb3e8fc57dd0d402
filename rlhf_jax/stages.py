"""What one stage leaves for the next: a network, its tokenizer, its parameters.

A stage's run directory holds ``model.json``, ``tokenizer/`` and ``checkpoints/``; the
next stage starts from the directory, or from a checkpoint of transformers.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from rlhf_jax import checkpoint
from rlhf_jax.data import load_tokenizer, save_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.fingerprint import files_fingerprint, fingerprint
from rlhf_jax.models import DType, TransformerConfig
from rlhf_jax.models.hf import Kind, label_names, load_pretrained, resolve
from rlhf_jax.models.lora import LoraConfig, apply, merge
from rlhf_jax.processes import by_first
from rlhf_jax.rundir import load_json, save_json
from rlhf_jax.types import Params

MODEL_FILE = "model.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """How checkpoints of transformers are loaded; earlier stages are as they were."""

    dtype: DType = "float32"
    """Of activations."""
    param_dtype: DType = "float32"
    """Of parameters, whatever the files have."""
    remat: bool = False
    """Recompute each layer in the backward pass: memory for time."""
    ignore_remote_code: bool = False
    """Reads weights although config.json names code; it never runs."""


FLOAT32 = PretrainedConfig()

StageKind = Literal["policy", "reward", "personal"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage left, or what transformers saved."""

    model: TransformerConfig
    tokenizer: PreTrainedTokenizerFast
    params: Params  # of the network, without adapters
    num_outputs: int  # of a reward model's head; 0 for a policy
    source: str  # this stage: a folder, or a hub id
    base: str | None  # what it began with; None: from scratch
    stop_ids: tuple[int, ...]  # end a response
    hf_config: dict[str, Any] | None  # config.json, where it began as transformers'
    digest: str | None = None  # of the checkpoint that it was read from
    adapters: Params | None = None  # with the head, where that was trained, too
    lora: LoraConfig | None = None
    labels: tuple[str, ...] = ("bad", "good")  # of a reward model with several outputs
    label: int = 1  # the one that is the reward

    def whole(self) -> Params:
        """Parameters with their adapters; nothing is copied."""
        if self.adapters is None or self.lora is None:
            return self.params
        return apply(self.params, self.adapters, self.lora)

    def merged(self) -> "Stage":
        """The same network without adapters."""
        if self.adapters is None or self.lora is None:
            return self
        params = merge(self.params, self.adapters, self.lora)
        return dataclasses.replace(self, params=params, adapters=None, lora=None)


def save_model_files(
    run_dir: Path,
    model: TransformerConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    began: Stage | None,
    lora: LoraConfig | None = None,
    num_outputs: int = 0,
    personal: bool = False,
    params_path: str = "params",
) -> None:
    """Writes what a later stage needs besides the checkpoints. No reference.

    Of several processes the first one writes, and the others wait.

    Args:
      run_dir: of the stage.
      model: the network.
      tokenizer: what its tokens mean.
      began: the stage that this one started from; None for one from scratch.
      lora: of the adapters, where the checkpoints have no more than those.
      num_outputs: of a reward model's head; 0 for a policy.
      personal: they are features of many users' rewards.
      params_path: where in the checkpoints the network's parameters are.

    Raises:
      RunError: the files cannot be written.
    """
    kind: StageKind = "personal" if personal else "reward" if num_outputs else "policy"
    values = {
        "kind": kind,
        "num_outputs": num_outputs,
        "params_path": params_path,
        "model": dataclasses.asdict(model),
        "base": None if began is None else _relative(began.source, run_dir),
        "stop_ids": None if began is None else list(began.stop_ids),
        "hf_config": None if began is None else began.hf_config,
        "lora": None if lora is None else dataclasses.asdict(lora),
    }

    def write() -> None:
        save_json(run_dir / MODEL_FILE, values)
        save_tokenizer(tokenizer, run_dir / TOKENIZER)

    by_first(write)


def load_stage(
    path: Path,
    kind: StageKind,
    *,
    option: str,
    pretrained: PretrainedConfig = FLOAT32,
    base: Stage | None = None,
) -> Stage:
    """Loads the latest checkpoint of an earlier stage, or one of transformers.

    No reference.

    Args:
      path: a run directory; or a folder that transformers wrote, or a hub id.
      kind: what it must be.
      option: that asked for it, for messages.
      pretrained: how a checkpoint of transformers is loaded.
      base: a policy that is loaded already; adapters trained on it share its arrays.

    Returns:
      The stage; adapters that it trained lie beside what they adapt.

    Raises:
      UserError: there is no such stage, or one of the other kind.

    >>> import jax, tempfile
    >>> from rlhf_jax.data import train_tokenizer
    >>> from rlhf_jax.models import CausalLM, init_params
    >>> run_dir = Path(tempfile.mkdtemp())
    >>> tokenizer = train_tokenizer([], vocab_size=259)  # one token a byte
    >>> model = TransformerConfig(
    ...     vocab_size=259, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, d_head=8,
    ...     d_ff=16, max_length=8)
    >>> state = {"params": init_params(CausalLM(model), key=jax.random.key(0))}
    >>> checkpoint.save(run_dir / CHECKPOINTS, 1, state, host_state={}, keep=1)
    >>> save_model_files(run_dir, model, tokenizer, began=None)
    >>> stage = load_policy(run_dir)  # load_stage(run_dir, "policy", option="--policy")
    >>> stage.model == model, stage.stop_ids == (eos_id(tokenizer),)
    (True, True)
    """
    if kind != "personal" and not (path / MODEL_FILE).is_file():
        return _load_hf(path, kind, option, pretrained)
    saved = load_json(path / MODEL_FILE)
    if saved["kind"] == "personal" and kind != "personal":
        raise UserError(
            f"{option} {path}: holds the rewards of many users, expected a {kind} "
            "model; make one user's reward model of it with experiments.user_reward"
        )
    if saved["kind"] != kind:
        raise UserError(
            f"{option} {path}: holds a {saved['kind']} model, expected a {kind} "
            "model; give the run directory of that stage"
        )
    params, digest = _read_params(path / CHECKPOINTS, saved["params_path"])
    params.pop("value_head", None)  # a critic on the policy's trunk is not the policy
    tokenizer = load_tokenizer(path / TOKENIZER)
    stage = Stage(
        model=TransformerConfig.from_json(saved["model"]),
        tokenizer=tokenizer,
        params=params,
        num_outputs=saved["num_outputs"],
        source=str(path.resolve()),
        base=saved["base"] and _absolute(saved["base"], path),
        stop_ids=tuple(saved["stop_ids"] or [eos_id(tokenizer)]),
        hf_config=saved["hf_config"],
        digest=digest,
    )
    if saved["lora"] is None:
        return stage
    if base is None or base.source != stage.base:
        below = Path(stage.base or "")
        base = load_stage(
            below, "policy", option=option, pretrained=pretrained
        ).merged()
    return _beside(base, stage, kind, saved["lora"])


def _beside(base: Stage, stage: Stage, kind: StageKind, saved: dict[str, Any]) -> Stage:
    """The stage with its parameters as adapters of the base."""
    whole = dict(base.params)
    if kind != "policy":
        whole.pop("lm_head", None)
    targets = saved["targets"]
    config: dict[str, Any] = saved | {"targets": targets and tuple(targets)}
    return dataclasses.replace(
        stage, params=whole, adapters=stage.params, lora=LoraConfig(**config)
    )


def _read_params(directory: Path, params_path: str) -> tuple[Params, str | None]:
    """Parameters of the latest checkpoint, and its digest."""
    step = checkpoint.latest_step(directory)
    params = checkpoint.restore_params(directory, params_path, step=step)
    digest = None if step is None else checkpoint.read_manifest(directory, step).digest
    return params, digest


def load_policy(path: Path, pretrained: PretrainedConfig = FLOAT32) -> Stage:
    """The policy that --policy names, its own adapters merged. No reference.

    Args:
      path: see `load_stage`.
      pretrained: how a checkpoint of transformers is loaded.

    Raises:
      UserError: there is no such stage, or it is a reward model.
    """
    return load_stage(path, "policy", option="--policy", pretrained=pretrained).merged()


def _load_hf(path: Path, kind: Kind, option: str, config: PretrainedConfig) -> Stage:
    try:
        folder = resolve(str(path))
        found = load_pretrained(folder, kind=kind, **dataclasses.asdict(config))
    except UserError as error:
        raise UserError(
            f"{option} {path}: neither the run directory of a finished {kind} stage "
            f"(no {MODEL_FILE}) nor a checkpoint of transformers: {error}"
        ) from error
    tokenizer = load_tokenizer(folder)
    labels = label_names(found.hf_config) if kind == "reward" else ()
    return Stage(
        model=found.config,
        tokenizer=tokenizer,
        params=found.params,
        num_outputs=len(labels),
        source=str(path.resolve()) if path.is_dir() else str(path),
        base=None,
        stop_ids=_stop_ids(folder, tokenizer),
        hf_config=found.hf_config,
        labels=labels,
    )


def stage_fingerprint(stage: Stage) -> str:
    """A short name of what a stage is made of: a checkpoint, or files of transformers.

    No reference.

    Args:
      stage: as it was loaded.
    """
    if stage.digest is not None:
        return fingerprint([stage.digest])
    folder = resolve(stage.source)
    return files_fingerprint(folder, ("config.json", "*.safetensors"))


def _stop_ids(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokenizer's end token, and those of generation_config.json (chat models)."""
    file = folder / "generation_config.json"
    more: Any = load_json(file).get("eos_token_id") if file.is_file() else None
    more = [more] if isinstance(more, int) else more or []
    return tuple(dict.fromkeys([eos_id(tokenizer), *more]))


def _relative(source: str, run_dir: Path) -> str:
    """A folder as seen from the run directory, so that both can be moved together."""
    if not Path(source).is_dir():
        return source
    return os.path.relpath(source, run_dir.resolve())


def _absolute(source: str, run_dir: Path) -> str:
    folder = run_dir.resolve() / source
    return str(folder.resolve()) if folder.is_dir() else source


def eos_id(tokenizer: Any) -> int:
    """The token that ends a response; every tokenizer that is loaded here has one.

    No reference.
    """
    return tokenizer.eos_token_id


def pad_id(tokenizer: Any) -> int:
    """What stands in padding: <pad>, or EOS where there is none (masks do not care).

    No reference.
    """
    pad = tokenizer.pad_token_id
    return eos_id(tokenizer) if pad is None else pad
