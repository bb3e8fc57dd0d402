"""LoRA adapters in PEFT's format, read and written.

Theirs is one A [R, in] and one B [out, R] a module; see `adapter_layout`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.hf.adapter_layout import (
    AB,
    Module,
    adapted_projections,
    find_modules,
    join,
    module_suffix,
    split,
    stack,
)
from rlhf_jax.models.hf.card import ModelCard
from rlhf_jax.models.hf.families import FAMILIES
from rlhf_jax.models.hf.files import TensorFiles, open_tensors, read_object, resolve
from rlhf_jax.models.hf.load import abstract_params
from rlhf_jax.models.hf.weights import (
    OFFSET,
    flatten,
    score_extras,
    score_offset,
    score_weight,
    unflatten,
)
from rlhf_jax.models.hf.write_files import write_checkpoint
from rlhf_jax.models.lora import PROJECTIONS, LoraConfig
from rlhf_jax.types import Params

CONFIG, STEM = "adapter_config.json", "adapter_model"
OFFSET_FILE = "score_offset.json"
_BEFORE = "base_model.model."
_SCORE = f"{_BEFORE}score.weight"  # a reward head is trained whole

# What changes the numbers of an adapter, and the only values that are read.
_SUPPORTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False, True),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "exclude_modules": (None, []),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None,),
    # PEFT names both heads that a sequence classifier may have.
    "modules_to_save": (None, [], ["score"], ["classifier", "score"]),
    # Others change the base's weights when they are loaded (PiSSA, OLoRA, …).
    "init_lora_weights": (True, None, False, "gaussian", "eva", "orthogonal"),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
}


def save_adapters(
    folder: str | Path,
    adapters: Params,
    lora: LoraConfig,
    config: TransformerConfig,
    *,
    hf_config: Mapping[str, Any],
    base_model: str,
    card: ModelCard | None = None,
) -> None:
    """Writes adapters that PEFT loads onto the model they were trained on.

    Hu et al. 2021, arXiv:2106.09685.

    Args:
      folder: where; must not exist, or be empty.
      adapters: as `lora.init` makes them; a score head beside them is written whole.
      lora: their rank and scale.
      config: of the base.
      hf_config: config.json of the base.
      base_model: hub id or folder of the base, for PEFT.
      card: None writes no README.md.

    Raises:
      UserError: only some parts of a fused projection have an adapter, or a tree has
        leaves that are none.
    """
    leaves = flatten(adapters)
    tensors: dict[str, np.ndarray] = {}
    targets: dict[str, int] = {}  # their module, without its layer -> rank
    for module in find_modules(config, hf_config, leaves):
        a, b = join(module, leaves)
        tensors[f"{_BEFORE}{module.name}.lora_A.weight"] = a
        tensors[f"{_BEFORE}{module.name}.lora_B.weight"] = b
        targets[module_suffix(module.name)] = a.shape[0]
    _check_leaves(folder, leaves)
    head = "score_head/kernel" in leaves
    if head:
        tensors[_SCORE] = score_weight(leaves).T
    peft = _peft_config(targets, lora, base_model, head)
    peft["fan_in_fan_out"] = not FAMILIES[hf_config["model_type"]].transposed
    files = {CONFIG: json.dumps(peft, indent=2) + "\n"}
    if head:  # in a file of its own: PEFT warns of options that it does not know
        files[OFFSET_FILE] = json.dumps({OFFSET: score_offset(leaves)}) + "\n"
    if card is not None:
        files["README.md"] = card.text(hf_config)
    specs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in tensors.items()}
    write_checkpoint(folder, specs, tensors.__getitem__, files=files, stem=STEM)


def _check_leaves(folder: str | Path, leaves: Mapping[str, Any]) -> None:
    """Adapters, and one score at most."""
    kernel = leaves.get("score_head/kernel")
    if kernel is not None and kernel.shape[1] != 1:
        raise UserError(
            f"{folder}: a reward model with several outputs; only one score is a "
            "sequence classifier with num_labels=1"
        )
    written = {
        f"{module}/{leaf}" for module in adapted_projections(leaves) for leaf in AB
    }
    if left := sorted(n for n in leaves if n not in written and "score_head" not in n):
        raise UserError(
            f"{folder}: {', '.join(left[:3])} are not adapters; leave them out"
        )


def load_adapters(
    path_or_id: str | Path, config: TransformerConfig, *, hf_config: Mapping[str, Any]
) -> tuple[Params, LoraConfig]:
    """Reads PEFT's adapters for a base.

    Hu et al. 2021, arXiv:2106.09685.

    Args:
      path_or_id: a local folder or a hub id.
      config: of the base.
      hf_config: config.json of the base.

    Returns:
      (adapters, their config); a score head where the file has one.

    Raises:
      UserError: an option, tensor or module that is not supported, by name.
    """
    folder = resolve(path_or_id)
    peft = read_object(folder / CONFIG)
    _check_options(folder, peft)
    files = open_tensors(folder, filename=f"{STEM}.safetensors")
    slices, scales, read = _read_modules(files, peft, config, hf_config)
    left = set(files.specs) - read - {_SCORE}
    if left or not slices:
        raise UserError(
            f"{folder}: {', '.join(sorted(left)[:3]) or 'no adapter'} has no place in "
            f"a {hf_config['model_type']}; is it an adapter of this base?"
        )
    leaves = stack(folder, slices, config) | _read_score(files, config)
    ranks = {leaf.shape[-1] for name, leaf in leaves.items() if name.endswith("lora_a")}
    if len(ranks) != 1 or len(scales) != 1:
        raise UserError(
            f"{folder}: ranks {sorted(ranks)} and scales {sorted(scales)}; expected "
            "one of each for all modules (rank_pattern, alpha_pattern)"
        )
    rank, scale = ranks.pop(), scales.pop()
    adapted = {ours.split("/")[-1] for ours in adapted_projections(leaves)}
    targets = tuple(name for name in PROJECTIONS if name in adapted)
    return unflatten(leaves), LoraConfig(rank, scale * rank, targets)


def _read_modules(
    files: TensorFiles,
    peft: Mapping[str, Any],
    config: TransformerConfig,
    hf_config: Mapping[str, Any],
) -> tuple[dict[str, list[np.ndarray]], set[float], set[str]]:
    """(slices of our leaves, layer by layer; scales; the tensors that were read)."""
    shapes = flatten(abstract_params(config))
    slices: dict[str, list[np.ndarray]] = {}
    scales: set[float] = set()
    read: set[str] = set()
    for module in find_modules(config, hf_config, None):
        theirs = {f"{_BEFORE}{module.name}.lora_{x}.weight" for x in "AB"}
        if not theirs & set(files.specs):
            continue
        a, b = (_read(files, name) for name in sorted(theirs))
        _check_shapes(files.folder, module, a, b, shapes)
        scales.add(_scale(peft, module.name, a.shape[0]))
        widths = [shapes[f"{ours}/kernel"].shape[-1] for ours in module.ours]
        parts = split(module.weight, a, b, widths, peft["r"])
        for ours, part in zip(module.ours, parts, strict=True):
            for leaf, x in zip(AB, part, strict=True):
                slices.setdefault(f"{ours}/{leaf}", []).append(x)
        read |= theirs
    return slices, scales, read


def _read_score(files: TensorFiles, config: TransformerConfig) -> dict[str, Any]:
    """The leaves of a score head, where the file has one."""
    if _SCORE not in files.specs:
        return {}
    if files.specs[_SCORE].shape != (1, config.d_model):
        raise UserError(
            f"{files.folder}: {_SCORE} is {list(files.specs[_SCORE].shape)}, expected "
            f"[1, {config.d_model}]: one score for this base"
        )
    offset = files.folder / OFFSET_FILE
    constant = read_object(offset)[OFFSET] if offset.is_file() else 0.0
    kernel = {"score_head/kernel": jnp.asarray(_read(files, _SCORE).T)}
    return kernel | score_extras(constant)


def _peft_config(
    targets: Mapping[str, int], lora: LoraConfig, base_model: str, head: bool
) -> dict[str, Any]:
    wide = {name: rank for name, rank in targets.items() if rank != lora.rank}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "rank_pattern": wide,
        "alpha_pattern": {name: lora.scale * rank for name, rank in wide.items()},
        "modules_to_save": ["score"] if head else None,
        "inference_mode": True,
    }


def _check_options(folder: Path, peft: Mapping[str, Any]) -> None:
    for name in ("r", "lora_alpha"):
        if not isinstance(peft.get(name), int | float):
            raise UserError(
                f"{folder / CONFIG}: {name} = {peft.get(name)!r}, expected a number"
            )
    for name, allowed in _SUPPORTED.items():
        if peft.get(name, allowed[0]) not in allowed:
            raise UserError(
                f"{folder / CONFIG}: {name} = {peft[name]!r} is not supported; "
                f"expected {' or '.join(map(repr, allowed))}"
            )


def _scale(peft: Mapping[str, Any], module: str, rank: int) -> float:
    """α/r of a module, or α/√r (rsLoRA, arXiv:2312.03732)."""
    pattern = peft.get("alpha_pattern") or {}
    matches = [k for k in pattern if re.match(rf"(.*\.)?({k})$", module)]
    alpha = pattern[matches[0]] if matches else peft["lora_alpha"]
    return alpha / (rank**0.5 if peft.get("use_rslora") else rank)


def _read(files: TensorFiles, name: str) -> np.ndarray:
    """A tensor of an adapter in float32; every one of them is small."""
    return files.read(name).astype(np.float32)


def _check_shapes(
    folder: Path,
    module: Module,
    a: np.ndarray,
    b: np.ndarray,
    shapes: Mapping[str, Any],
) -> None:
    kernels = [shapes[f"{ours}/kernel"].shape for ours in module.ours]
    fan_in, fan_out = kernels[0][-2], sum(kernel[-1] for kernel in kernels)
    if a.shape != (a.shape[0], fan_in) or b.shape != (fan_out, a.shape[0]):
        raise UserError(
            f"{folder}: {module.name} has A {list(a.shape)} and B {list(b.shape)}, "
            f"expected [R, {fan_in}] and [{fan_out}, R]; is it for this base?"
        )
