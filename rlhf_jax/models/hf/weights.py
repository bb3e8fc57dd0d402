"""How one tensor of a checkpoint lies in our parameters, and back.

Ours are [in, out] with layers (and experts) stacked in front; theirs are one tensor a
layer, mostly [out, in], some of them several projections fused.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.hf.families import Family

Leaves = Mapping[str, Any]  # "trunk/embed/embedding" -> array or its shape
Layer = tuple[int, ...]  # a layer, or a layer and an expert; () outside of them

# transformers calls both of these "weight".
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# A reward head is one vector there; here it also has what normalises the scores.
SCORE_EXTRAS = ("score_head/bias", "score_head/gain", "score_head/offset")
OFFSET = "rlhf_jax_score_offset"  # option that keeps the constant of the scores


class Weight(NamedTuple):
    """A tensor of theirs, and the slices of our leaves that it holds."""

    leaves: tuple[str, ...]  # several where it is a fused projection
    layer: Layer  # index of the slice in each of them
    transposed: bool
    heads: int  # 0: parts follow one another; else they alternate in so many heads

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor from slices of our leaves."""
        if self.heads:
            by_head = [p.reshape(*p.shape[:-1], self.heads, -1) for p in parts]
            whole = np.stack(by_head, axis=-2).reshape(*parts[0].shape[:-1], -1)
        else:
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return whole.T if self.transposed else whole

    def split(self, whole: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
        """Slices of our leaves from their tensor; widths are of their last axes."""
        whole = whole.T if self.transposed else whole
        if self.heads:
            by_head = whole.reshape(*whole.shape[:-1], self.heads, len(widths), -1)
            parts = np.moveaxis(by_head, -2, 0)
            return [p.reshape(*whole.shape[:-1], -1) for p in parts]
        return np.split(whole, np.cumsum(widths)[:-1], axis=-1)

    def shape(self, leaves: Leaves) -> tuple[int, ...]:
        """Shape of their tensor, from those of our leaves."""
        shapes = [leaves[name].shape[len(self.layer) :] for name in self.leaves]
        whole = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return whole[::-1] if self.transposed else whole


def flatten(params: Any) -> dict[str, Any]:
    """{"trunk/embed/embedding": leaf} of a tree of parameters."""
    with_paths, _ = jax.tree.flatten_with_path(params)
    name = lambda path: "/".join(str(key.key) for key in path)
    return {name(path): leaf for path, leaf in with_paths}


def unflatten(leaves: Leaves) -> Any:
    """The tree whose leaves ``flatten`` names."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = leaf
    return tree


def checkpoint_weights(
    family: Family, config: TransformerConfig, leaves: Leaves
) -> dict[str, Weight]:
    """Every tensor that a checkpoint of these parameters has, by name. No reference.

    Args:
      family: whose names.
      config: for the numbers of layers, experts and heads.
      leaves: our parameters or their shapes, flat.

    Returns:
      {name: where it lies}, in the order of the table and the layers.
    """
    found: dict[str, Weight] = {}
    covered: set[str] = set()
    for theirs, ours in family.names.items():
        for leaf, suffix in _LEAVES.items():
            names = tuple(f"{module}/{leaf}" for module in ours)
            if names[0] not in leaves or names[0] in SCORE_EXTRAS:
                continue
            covered.update(names)
            fused = len(ours) > 1
            heads = config.n_heads if fused and family.interleaved else 0
            transposed = leaf == "kernel" and (family.transposed or ours[0] in _LINEAR)
            for layer, name in _layers(theirs, config):
                found[f"{name}.{suffix}"] = Weight(names, layer, transposed, heads)
    left = set(leaves) - covered - set(SCORE_EXTRAS)
    assert not left, f"the {family.architecture} table misses {sorted(left)}"
    return found


_LINEAR = ("lm_head", "score_head")  # linear layers in GPT-2, too


def _layers(theirs: str, config: TransformerConfig) -> Iterator[tuple[Layer, str]]:
    """(layer, name) of a module in every layer, and every expert of it."""
    ranges = [range(config.n_layers)] * ("{l}" in theirs)
    ranges += [range(config.n_experts)] * ("{e}" in theirs)
    for layer in itertools.product(*ranges):
        yield layer, theirs.format(**dict(zip("le", layer, strict=False)))


def score_weight(leaves: Leaves) -> np.ndarray:
    """[D, 1]: what a reward head multiplies with, its gain included."""
    return np.asarray(leaves["score_head/kernel"]) * np.asarray(
        leaves["score_head/gain"]
    )


def score_offset(leaves: Leaves) -> float:
    """What a reward head adds: the layout has no place for it but an option."""
    bias, gain, offset = (float(np.ravel(leaves[name])[0]) for name in SCORE_EXTRAS)
    return gain * bias + offset


def score_extras(offset: float, num_outputs: int = 1) -> dict[str, Any]:
    """The leaves of a reward head that is one vector an output and a constant."""
    return {
        "score_head/bias": jnp.zeros((num_outputs,)),
        "score_head/gain": jnp.ones(()),
        "score_head/offset": jnp.float32(offset),
    }
