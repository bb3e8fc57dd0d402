"""Checkpoints of transformers to parameters, tensor by tensor."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoConfig

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import DType, TransformerConfig
from rlhf_jax.models.heads import CausalLM, ScoreModel, init_params
from rlhf_jax.models.hf.families import FAMILIES, Family
from rlhf_jax.models.hf.files import TensorFiles, open_tensors, read_config, resolve
from rlhf_jax.models.hf.options import check_options
from rlhf_jax.models.hf.weights import (
    OFFSET,
    Weight,
    checkpoint_weights,
    flatten,
    score_extras,
    unflatten,
)
from rlhf_jax.types import Params

Kind = Literal["policy", "reward"]
_DTYPES = ("float32", "bfloat16", "float16")
# What old checkpoints keep beside the weights: masks and wavelengths.
_BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|attention\.bias"
    r"|attention\.masked_bias)$"
)


class Pretrained(NamedTuple):
    """A network as it was found."""

    config: TransformerConfig
    params: Params  # of a `CausalLM`, or of a `ScoreModel`
    hf_config: dict[str, Any]  # config.json, for writing the same kind again


def read_transformer_config(
    raw: Mapping[str, Any], **numerics: Any
) -> tuple[Family, TransformerConfig]:
    """(family, config) of a config.json; numerics are dtype, remat and so on.

    Raises:
      UserError: an architecture or an option that is not supported, by name.
    """
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"config.json: model_type = {model_type!r} is not supported; expected one "
            f"of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    check_options(raw, family.options)
    try:
        config = AutoConfig.for_model(**raw)
    except Exception as error:  # each class validates in its own way
        reason = " ".join(str(error).split())
        raise UserError(f"config.json: transformers refuses it: {reason}") from error
    return family, TransformerConfig(**{**family.read(config), **numerics})


def load_pretrained(
    path_or_id: str | Path,
    *,
    kind: Kind = "policy",
    param_dtype: DType = "float32",
    dtype: DType = "float32",
    remat: bool = False,
    shardings: Any = None,
    ignore_remote_code: bool = False,
) -> Pretrained:
    """Loads a causal model or a sequence classifier of transformers. No reference.

    Every tensor's name, shape and dtype is checked before the first one is read. Then
    one tensor is in host memory at a time, and goes to its place on the device.

    Args:
      path_or_id: a local folder or a hub id; without a network, from the hub's cache.
      kind: ``"policy"`` for a causal model, ``"reward"`` for a sequence classifier,
        with an output a label, see `label_names`.
      param_dtype: of the parameters, whatever the file has.
      dtype: of activations.
      remat: see `TransformerConfig`.
      shardings: tree of ``jax.sharding.Sharding`` like the parameters; None puts them
        on the default device.
      ignore_remote_code: reads weights although config.json names code (``auto_map``),
        which never runs; the architecture must be a known one all the same.

    Returns:
      The config, the parameters and config.json.

    Raises:
      UserError: an architecture, option, file or tensor that cannot be used, by name.
    """
    folder = resolve(path_or_id)
    raw = read_config(folder, ignore_remote_code=ignore_remote_code)
    family, config = read_transformer_config(
        raw, param_dtype=param_dtype, dtype=dtype, remat=remat
    )
    num_outputs = len(label_names(raw)) if kind == "reward" else 0
    shapes = abstract_params(config, kind, num_outputs=num_outputs)
    files = open_tensors(folder)
    weights = checkpoint_weights(family, config, flatten(shapes))
    names = match_names(files, family, weights, flatten(shapes), config)
    leaves = _read_leaves(files, names, weights, flatten(shapes), flatten(shardings))
    if kind == "reward":
        for name, leaf in score_extras(raw.get(OFFSET, 0.0), num_outputs).items():
            leaves[name] = jax.device_put(leaf, flatten(shardings).get(name))
    ordered = {name: leaves[name] for name in flatten(shapes)}
    return Pretrained(config, unflatten(ordered), raw)


def abstract_params(
    config: TransformerConfig, kind: Kind = "policy", *, num_outputs: int = 1
) -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    module = CausalLM(config) if kind == "policy" else ScoreModel(config, num_outputs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(functools.partial(init_params, module), key=key)


def label_names(hf_config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the outputs of a sequence classifier stand for, by its config.json.

    As transformers counts and names them: two where the file says nothing. No
    reference.

    >>> label_names({"id2label": {"0": "nothate", "1": "hate"}})
    ('nothate', 'hate')
    """
    names = hf_config.get("id2label") or {}
    count = len(names) or hf_config.get("num_labels", 2)
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))


def match_names(
    files: TensorFiles,
    family: Family,
    weights: Mapping[str, Weight],
    leaves: Mapping[str, Any],
    config: TransformerConfig,
) -> dict[str, str]:
    """{our name of a tensor: its name in the files}; checks all of them.

    Raises:
      UserError: a tensor that is missing, unexpected, of another shape or not a float;
        a tied head that differs from the embedding.
    """
    bare = not any(name.startswith(family.prefix) for name in files.specs)
    names = {n: n.removeprefix(family.prefix) if bare else n for n in weights}
    for name, theirs in names.items():
        if theirs not in files.specs:
            raise UserError(
                f"{files.folder}: no tensor {theirs}; it has "
                f"{_examples(files.specs, theirs)}; is it a checkpoint of "
                f"{family.architecture}?"
            )
        spec, expected = files.specs[theirs], weights[name].shape(leaves)
        if spec.shape != expected:
            raise UserError(
                f"{spec.file}: tensor {theirs} is {list(spec.shape)}, expected "
                f"{list(expected)} by config.json; one of them is wrong"
            )
        if spec.dtype.name not in _DTYPES:
            raise UserError(
                f"{spec.file}: tensor {theirs} is {spec.dtype.name}, expected one of "
                f"{', '.join(_DTYPES)}; quantized weights are not supported"
            )
    _check_left(files, family, set(files.specs) - set(names.values()), config, names)
    return names


def _check_left(
    files: TensorFiles,
    family: Family,
    left: set[str],
    config: TransformerConfig,
    names: Mapping[str, str],
) -> None:
    """Tensors that have no place: buffers, and a copy of the tied embedding."""
    theirs = {ours[0]: name + ".weight" for name, ours in family.names.items()}
    head, embedding = theirs["lm_head"], theirs["trunk/embed"]
    if config.tie_embeddings and head in left:
        same = np.array_equal(files.read(head), files.read(names[embedding]))
        if not same:
            raise UserError(
                f"{files.folder}: tie_word_embeddings is true, but {head} is not "
                f"{embedding}; set it to false in config.json, or remove the tensor"
            )
        left = left - {head}
    if unknown := sorted(name for name in left if not _BUFFERS.search(name)):
        raise UserError(
            f"{files.folder}: {len(unknown)} tensors that {family.architecture} does "
            f"not have, {', '.join(unknown[:3])} …; choose the right kind of model"
        )


def _examples(specs: Mapping[str, Any], like: str) -> str:
    last = like.split(".")[-2]
    close = [name for name in specs if last in name] or list(specs)
    return ", ".join(close[:2]) + " …"


def _read_leaves(
    files: TensorFiles,
    names: Mapping[str, str],
    weights: Mapping[str, Weight],
    shapes: Mapping[str, Any],
    shardings: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Our leaves, filled slice by slice in the order of the files."""
    leaves: dict[str, jax.Array] = {}
    place = lambda name: files.specs[names[name]]
    for name in sorted(weights, key=lambda n: (place(n).file, place(n).start)):
        weight = weights[name]
        widths = [shapes[leaf].shape[-1] for leaf in weight.leaves]
        parts = weight.split(files.read(names[name]), widths)
        for leaf, part in zip(weight.leaves, parts, strict=True):
            target = shapes[leaf]
            value = part.astype(target.dtype, order="C", copy=False)
            if not weight.layer:
                leaves[leaf] = jax.device_put(value, shardings.get(leaf))
            else:
                if leaf not in leaves:
                    leaves[leaf] = jnp.zeros(
                        target.shape, target.dtype, device=shardings.get(leaf)
                    )
                leaves[leaf] = _put(leaves[leaf], value, weight.layer)
            # Else the host would read on, and hold what is still on its way.
            leaves[leaf].block_until_ready()
    return leaves


@functools.partial(jax.jit, donate_argnums=0)
def _put(stacked: jax.Array, value: Any, index: tuple[Any, ...]) -> jax.Array:
    """One layer's slice into the stacked leaf, in place."""
    return stacked.at[index].set(value)
