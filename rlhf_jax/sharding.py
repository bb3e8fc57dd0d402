"""Steps over a mesh: parameters in parts, by their names.

Where `parallel` gives every device the whole state, a mesh may hold a part on each:

* ``data``: each device has its rows of the batch;
* ``fsdp``: as data, and each has a part of every weight and of its optimiser state, the
  whole of which it only sees while the layer runs (Rajbhandari et al. 2019,
  arXiv:1910.02054);
* ``sequence``: each has its part of every row's tokens, and keys and values of all of
  them only while attention runs (Llama Team 2024, arXiv:2407.21783, section 3.3.2): for
  rows that are too long for one device. Weights are cut as by fsdp;
* ``tensor``: each has some heads, some of the MLP's width and some of the vocabulary
  (Shoeybi et al. 2019, arXiv:1909.08053).

The step is the same function as on one device, without an axis name: the compiler adds
the communication that the parts ask for.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.errors import UserError
from rlhf_jax.rows import SEQUENCE
from rlhf_jax.types import TokenBatch

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = (DATA, FSDP)  # the axes that share the rows of a batch

# What the end of a leaf's path says of its last dimensions; those before, layers and
# experts, are whole. A leaf that no rule names is whole on every device.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"pos_embed/embedding", (None, FSDP)),
    (r"embed/embedding", (TENSOR, FSDP)),
    (r"(q|k|v|gate|up)_proj/kernel", (FSDP, TENSOR)),
    (r"(q|k|v|gate|up)_proj/lora_a", (FSDP, None)),
    (r"(q|k|v|gate|up)_proj/lora_b", (None, TENSOR)),
    (r"(q|k|v|gate|up)_proj/bias", (TENSOR,)),
    (r"(o|down)_proj/kernel", (TENSOR, FSDP)),
    (r"(o|down)_proj/lora_a", (TENSOR, None)),
    (r"(o|down)_proj/lora_b", (None, FSDP)),
    (r"lm_head/kernel", (FSDP, TENSOR)),
    (r"lm_head/lora_a", (FSDP, None)),
    (r"lm_head/lora_b", (None, TENSOR)),
)

# optax's means over a dimension of a weight, which is in "params" of the train state.
MEANS = re.compile(r"(\bopt_state/.*)?\bv_(?P<of>row|col)/")


def make_mesh(
    devices: Sequence[Any], *, fsdp: int = 1, sequence: int = 1, tensor: int = 1
) -> Mesh:
    """A mesh of the devices; those that the other axes leave over share the data.

    No reference.

    Raises:
      UserError: the devices are not a multiple of fsdp · sequence · tensor.

    >>> dict(make_mesh(jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'sequence': 1, 'tensor': 1}
    """
    if len(devices) % (fsdp * sequence * tensor):
        raise UserError(
            f"fsdp = {fsdp}, sequence = {sequence} and tensor = {tensor} on "
            f"{len(devices)} devices: expected a product that divides the devices"
        )
    grid = np.array(devices).reshape(-1, fsdp, sequence, tensor)
    return Mesh(grid, (DATA, FSDP, SEQUENCE, TENSOR))


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Where each leaf of a state or of parameters belongs, by RULES.

    No reference. A dimension that its part of the mesh does not divide is whole. Means
    of a weight's rows or columns (`OptimConfig.moments`) are cut as what they have of
    the weight's dimensions, if the weight is in the same train state; else they are
    whole.

    Args:
      tree: arrays or their shapes; optimiser states have their parameters' paths.
      mesh: of `make_mesh`.

    Returns:
      The tree with a NamedSharding in place of each leaf.

    >>> shapes = {"q_proj": {"kernel": jax.ShapeDtypeStruct((2, 8, 8), "float32")}}
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> tuple(state_shardings(shapes, mesh)["q_proj"]["kernel"].spec)
    (None, 'fsdp', 'tensor')
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {name(path): np.shape(x) for path, x in leaves}

    def where(path: Any, x: Any) -> NamedSharding:
        means = MEANS.search(name(path))
        if means is None:
            return NamedSharding(mesh, _spec(name(path), np.shape(x), mesh))
        weight = MEANS.sub("params/", name(path))
        shape = shapes.get(weight, ())
        whole = _spec(weight, shape, mesh)
        spec = _spec_of_means(whole, shape, np.shape(x), means["of"])
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(where, tree)


def place_state(tree: Any, mesh: Mesh) -> Any:
    """The tree on the mesh, each leaf where `state_shardings` says; a copy.

    No reference.
    """
    copies = jax.tree.map(jax.numpy.copy, tree)
    return jax.device_put(copies, state_shardings(tree, mesh))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch on the mesh, its rows over data and fsdp.

    No reference.

    Of several processes each gives the rows of its own devices, all as many. Where the
    mesh cuts rows, each device of a row has all of its ids: what is wide is cut later.

    Raises:
      UserError: the rows, or their tokens, cannot be cut into equal parts.
    """
    _check_tokens(batch, mesh.shape[SEQUENCE])
    parts = mesh.shape[DATA] * mesh.shape[FSDP]
    for leaf in jax.tree.leaves(batch):
        rows = leaf.shape[0] * jax.process_count()
        if rows % parts:
            raise UserError(
                f"batch of {rows} rows on {parts} parts of a mesh: expected a "
                f"multiple of {parts}; change the batch size or the mesh"
            )
    where = NamedSharding(mesh, PartitionSpec(ROWS))
    if jax.process_count() == 1:
        return jax.device_put(batch, where)
    own = lambda x: jax.make_array_from_process_local_data(where, x)
    return jax.tree.map(own, batch)


def mesh_parallel(step: Callable, *, donate_state: bool = False) -> Callable:
    """Runs a train step on the mesh that its arguments are on. No reference.

    Args:
      step: ``(state, *trees, key=...) -> (state, metrics)``; other keywords are bound
        by ``functools.partial`` beforehand.
      donate_state: the state's buffers are reused for the result, and gone.

    Returns:
      A function of the same arguments; the new state lies as the old one does.
    """
    compiled: dict[Any, Callable] = {}

    def call(state: Any, *trees: Any, **keys: Any) -> Any:
        where = jax.tree.map(lambda x: x.sharding, state)
        known = tuple(jax.tree.leaves(where))
        if known not in compiled:
            compiled[known] = jax.jit(
                on_mesh(step, known[0].mesh),
                out_shardings=(where, None),
                donate_argnums=(0,) if donate_state else (),
            )
        return compiled[known](state, *trees, **keys)

    return call


def on_mesh(step: Callable, mesh: Mesh) -> Callable:
    """The step, its activations cut by tokens wherever they leave an embedding.

    No reference.

    Without that the compiler lets them lie as the embedding does, in parts of their
    width, and then sums activations of the whole batch over the devices in each layer:
    what a device sends grows with their number. To be traced by ``jax.jit``.
    """
    where = NamedSharding(mesh, PartitionSpec((SEQUENCE, *ROWS)))  # as in `rows`
    parts = mesh.size // mesh.shape[TENSOR]

    def cut(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        out = call(*args, **kwargs)
        of_tokens = isinstance(context.module, nn.Embed)
        if of_tokens and context.method_name == "__call__" and not len(out) % parts:
            return jax.lax.with_sharding_constraint(out, where)
        return out

    @functools.wraps(step)  # its name is what profiles call it
    def run(*args: Any, **kwargs: Any) -> Any:
        in_use = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with in_use, nn.intercept_methods(cut):
            return step(*args, **kwargs)

    return run


def _check_tokens(batch: Any, parts: int) -> None:
    of_tokens = lambda x: isinstance(x, TokenBatch)
    for rows in filter(of_tokens, jax.tree.leaves(batch, is_leaf=of_tokens)):
        tokens = rows.tokens.shape[1]
        if tokens % parts:
            raise UserError(
                f"rows of {tokens} tokens in {parts} parts of a mesh (sequence): "
                f"expected a multiple of {parts}; change their length or the mesh"
            )


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    for pattern, axes in RULES:
        if re.search(rf"(^|/){pattern}$", name) and len(shape) >= len(axes):
            whole = [None] * (len(shape) - len(axes))
            sizes = shape[len(whole) :]
            return PartitionSpec(
                *whole, *(_part(*x, mesh) for x in zip(axes, sizes, strict=True))
            )
    return PartitionSpec()


def _part(axis: str | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """What cuts a dimension of a weight: sequence, if it is there, with fsdp."""
    if axis == FSDP and mesh.shape[SEQUENCE] > 1:
        parts = mesh.shape[FSDP] * mesh.shape[SEQUENCE]
        return None if size % parts else (FSDP, SEQUENCE)
    return None if axis is None or size % mesh.shape[axis] else axis


def _spec_of_means(
    spec: PartitionSpec, shape: tuple[int, ...], means: tuple[int, ...], of: str
) -> PartitionSpec:
    """The spec of a weight without the dimension that its means are taken over."""
    parts = [*spec, *[None] * (len(shape) - len(spec))]
    without = lambda axis, sizes: [*sizes[:axis], *sizes[axis + 1 :]]
    taken = [i for i in range(len(shape)) if without(i, shape) == [*means]]
    if not taken:  # of a weight that is not there, or has no means
        return PartitionSpec()
    # Of equal widths the rows' means are over the later one, by optax.
    return PartitionSpec(*without(taken[-1 if of == "row" else 0], parts))
