"""How PEFT's A and B of a module lie in our adapters, and back.

Where a module is several of our projections fused, it is one of n·R ranks whose B is
zero outside each part's own block.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.hf.families import FAMILIES
from rlhf_jax.models.hf.load import abstract_params
from rlhf_jax.models.hf.weights import Weight, checkpoint_weights, flatten
from rlhf_jax.models.lora import PROJECTIONS

AB = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Module:
    """One of their modules that has an adapter."""

    name: str
    weight: Weight
    ours: tuple[str, ...]  # paths of our projections, without a leaf


def adapted_projections(leaves: Mapping[str, Any]) -> list[str]:
    """Paths of the projections that have an adapter."""
    return [n.removesuffix("/lora_a") for n in leaves if n.endswith("/lora_a")]


def find_modules(
    config: TransformerConfig,
    hf_config: Mapping[str, Any],
    leaves: Mapping[str, Any] | None,
) -> list[Module]:
    """Their modules that may have an adapter; given leaves, those that do."""
    family = FAMILIES[hf_config["model_type"]]
    shapes = flatten(abstract_params(config))
    found = []
    for name, weight in checkpoint_weights(family, config, shapes).items():
        kernels = [n for n in weight.leaves if n.split("/")[-2] in PROJECTIONS]
        if not kernels or len(weight.layer) > 1:  # experts take none
            continue
        ours = tuple(kernel.removesuffix("/kernel") for kernel in kernels)
        has = [leaves is None or f"{path}/lora_a" in leaves for path in ours]
        if any(has) and not all(has):
            raise UserError(
                f"{name.removesuffix('.weight')} is one module there: adapters on "
                f"{', '.join(ours)} go together; add the missing ones to lora.targets"
            )
        if all(has):
            # transformers 5 has renamed GPT-NeoX's module, not the weights in files.
            module = name.removesuffix(".weight").replace("embed_out", "lm_head")
            found.append(Module(module, weight, ours))
    return found


def module_suffix(name: str) -> str:
    """self_attn.q_proj of model.layers.0.self_attn.q_proj; lm_head itself."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last + 1 :])


def join(module: Module, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
    """(A [R, in], B [out, R]) of their module from our slices."""
    a, b = (
        [
            np.asarray(leaves[f"{ours}/{leaf}"][module.weight.layer])
            for ours in module.ours
        ]
        for leaf in AB
    )
    if all(np.array_equal(x, a[0]) for x in a):  # one part, or read from PEFT
        wide, blocks = a[0], [b]
    else:
        wide = np.concatenate(a, axis=-1)
        blocks = [
            [
                x if i == j else np.zeros((b[i].shape[0], x.shape[1]), x.dtype)
                for j, x in enumerate(b)
            ]
            for i in range(len(b))
        ]
    whole = [_as_rows(module.weight.join(block), module.weight) for block in blocks]
    return wide.T, np.concatenate(whole, axis=0).T


def split(
    weight: Weight, a: np.ndarray, b: np.ndarray, widths: Sequence[int], own: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Our (A, B) of every part; parts of rank ``own`` that `join` fused come apart."""
    rows = _as_rows(b.T, weight)  # as join left it
    parts = weight.split(rows, widths)
    count = len(parts)
    block = lambda i: slice(i * own, (i + 1) * own)
    apart = count > 1 and a.shape[0] == count * own
    for i, part in enumerate(parts):
        rest = part.copy()
        rest[block(i)] = 0
        apart = apart and not rest.any()
    if apart:
        return [(a.T[:, block(i)], part[block(i)]) for i, part in enumerate(parts)]
    return [(a.T, part) for part in parts]


def _as_rows(x: np.ndarray, weight: Weight) -> np.ndarray:
    """Undoes, or does, the transposition of ``weight``: B is [R, out] either way."""
    return x.T if weight.transposed else x


def stack(
    folder: Path, slices: Mapping[str, list[np.ndarray]], config: TransformerConfig
) -> dict[str, Any]:
    """Our leaves, layers stacked."""
    stacked = {n: x for n, x in slices.items() if not n.startswith("lm_head/")}
    for name, layers in stacked.items():
        if len(layers) != config.n_layers or len({x.shape for x in layers}) != 1:
            raise UserError(
                f"{folder}: {name} in {len(layers)} of {config.n_layers} layers, or of "
                "several ranks; expected the same in every layer"
            )
    whole = lambda name, x: np.stack(x) if name in stacked else x[0]
    return {name: jnp.asarray(whole(name, layers)) for name, layers in slices.items()}
