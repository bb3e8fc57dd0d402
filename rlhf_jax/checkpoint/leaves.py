"""A pytree as named arrays, and back."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rlhf_jax.checkpoint.manifest import CheckpointError

Leaves = dict[str, Any]  # path of a leaf, such as "opt_state/0/mu/kernel" -> leaf


class Named(NamedTuple):
    """The leaves of a pytree by their paths."""

    leaves: Leaves  # with PRNG keys
    arrays: Leaves  # the same, keys as their words
    keys: dict[str, str]  # path of a PRNG key -> its kind


def named(tree: Any) -> Named:
    """Leaves by path; Python ints and bools become arrays, which loses nothing."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise CheckpointError(f"{name}: two leaves have this path: rename one")
        leaves[name] = _array(name, leaf)
    keys = {n: str(jax.random.key_impl(x)) for n, x in leaves.items() if _is_key(x)}
    concrete = lambda n, x: jax.random.key_data(x) if n in keys else x
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves.values())
    arrays = {} if abstract else {n: concrete(n, x) for n, x in leaves.items()}
    return Named(leaves, arrays, keys)


def _array(name: str, leaf: Any) -> Any:
    if isinstance(leaf, bool | int):
        leaf = jnp.asarray(leaf)
    elif isinstance(leaf, np.generic):
        leaf = np.asarray(leaf)
    elif not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise CheckpointError(
            f"{name}: a leaf of type {type(leaf).__name__} cannot be saved without "
            f"loss: make it an array, or put it into host_state"
        )
    if leaf.size == 0:
        raise CheckpointError(f"{name}: an array of size 0 cannot be saved")
    return leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def described(leaves: Leaves) -> dict[str, str]:
    """Dtype and shape of each: float32[4, 3]."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}


def check_same(where: str, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raises CheckpointError with every leaf that differs."""
    wrong = [
        f"  {name}: saved {saved.get(name, 'nothing')}, "
        f"expected {expected.get(name, 'nothing')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} leaves differ from the state to restore into: "
            "use the configuration of the run that saved it\n" + "\n".join(wrong)
        )


def nested(leaves: Leaves) -> Any:
    """{"a/b": x} -> {"a": {"b": x}}."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def flat(tree: Any) -> Leaves:
    """{"a": {"b": x}} -> {"a/b": x}."""
    return cast(Leaves, traverse_util.flatten_dict(tree, sep="/"))
