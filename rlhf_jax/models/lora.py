"""Low-rank adapters as pure functions on parameter trees: y = x·W + s·(x·A)·B.

Hu et al. 2021, arXiv:2106.09685. Adapters are a tree of their own, with ``lora_a`` and
``lora_b`` where the base has a projection. Nothing of the base is copied: a network
reads the union of both trees (`apply`), training changes the adapters alone (the steps
take the base from `freeze` as their frozen part), and the base without adapters is the
reference policy. Policy, critic and reward model can share one base.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.errors import UserError
from rlhf_jax.types import Array, Params, join_params

# What takes adapters unless told otherwise: the dense projections of the layers.
LAYER_PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
PROJECTIONS = (*LAYER_PROJECTIONS, "lm_head")  # experts and routers take none
_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections get adapters, and of what size.

    >>> LoraConfig(rank=8, alpha=16.0).scale
    2.0
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | None = None  # of PROJECTIONS; None: all of the layers

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank={self.rank}: set it to at least 1")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise UserError(f"lora.alpha={self.alpha}: set it above 0")
        if unknown := set(self.targets or ()) - set(PROJECTIONS):
            raise UserError(
                f"lora.targets={', '.join(sorted(unknown))}: expected some of "
                f"{', '.join(PROJECTIONS)}"
            )

    @property
    def scale(self) -> float:
        """What multiplies the low-rank product."""
        return self.alpha / self.rank


def init(base: Params, config: LoraConfig, *, key: Array) -> Params:
    """New adapters: A ~ U(−1/√in, 1/√in), B = 0, so that nothing changes at first.

    Hu et al. 2021, arXiv:2106.09685.

    Args:
      base: parameters of any network, kernels [L, in, out].
      config: rank and targets.
      key: PRNG key.

    Returns:
      The tree of adapters, float32: ``lora_a`` [L, in, R] and ``lora_b`` [L, R, out]
      beside where each kernel is, without L for lm_head.

    Raises:
      UserError: there is no projection to adapt.

    >>> base = {"blocks": {"q_proj": {"kernel": jnp.ones((2, 4, 3))}}}
    >>> adapters = init(base, LoraConfig(rank=1), key=jax.random.key(0))
    >>> jax.tree.map(jnp.shape, adapters)
    {'blocks': {'q_proj': {'lora_a': (2, 4, 1), 'lora_b': (2, 1, 3)}}}
    """

    def adapter(path: _Path, kernel: Array) -> dict[str, Array]:
        *layers, fan_in, fan_out = kernel.shape
        own_key = jax.random.fold_in(key, order.index(path))
        bound = fan_in**-0.5
        shape = (*layers, fan_in, config.rank)
        a = jax.random.uniform(own_key, shape, minval=-bound, maxval=bound)
        return {"lora_a": a, "lora_b": jnp.zeros((*layers, config.rank, fan_out))}

    order = [path for path, _ in _targets(base, config)]
    return _on_targets(base, config, adapter)


def freeze(base: Params, config: LoraConfig) -> Params:
    """The base as the steps' frozen part: with ``lora_scale`` at every target.

    No reference.

    >>> base = {"q_proj": {"kernel": jnp.ones((2, 4, 3))}}
    >>> freeze(base, LoraConfig(rank=1, alpha=3.0))["q_proj"]["lora_scale"]
    Array([3., 3.], dtype=float32)
    """
    scale = lambda _, kernel: {
        "lora_scale": jnp.full(kernel.shape[:-2], config.scale, jnp.float32)
    }
    return join_params(base, _on_targets(base, config, scale))


def apply(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Parameters of the network with its adapters: the union of both, no arithmetic.

    Hu et al. 2021, arXiv:2106.09685.

    Args:
      base: parameters of the network.
      adapters: as `init` makes them; may hold a head that is trained whole, too.
      config: those of ``init``.

    Returns:
      Parameters for the same ``apply_fn`` as the base's.

    >>> base = {"q_proj": {"kernel": jnp.ones((2, 4, 3))}}
    >>> adapters = init(base, LoraConfig(rank=1), key=jax.random.key(0))
    >>> sorted(apply(base, adapters, LoraConfig(rank=1))["q_proj"])
    ['kernel', 'lora_a', 'lora_b', 'lora_scale']
    """
    return join_params(freeze(base, config), adapters)


def merge(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Parameters without adapters that do the same: W + s·A·B, in W's dtype.

    Hu et al. 2021, arXiv:2106.09685. The sum is taken in float32 and rounded once.

    >>> base = {"q_proj": {"kernel": jnp.ones((1, 1, 1))}}
    >>> adapters = {"q_proj": {"lora_a": jnp.full((1, 1, 1), 2.0),
    ...                        "lora_b": jnp.full((1, 1, 1), 3.0)}}
    >>> merge(base, adapters, LoraConfig(rank=1, alpha=1.0))["q_proj"]["kernel"].item()
    7.0
    """

    def merged(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "lora_a" not in node:
            return {name: merged(child) for name, child in node.items()}
        kernel = node["kernel"].astype(jnp.float32)
        low_rank = jnp.matmul(node["lora_a"], node["lora_b"], precision="highest")
        kernel = kernel + node["lora_scale"][..., None, None] * low_rank
        rest = {k: v for k, v in node.items() if not k.startswith("lora_")}
        return rest | {"kernel": kernel.astype(node["kernel"].dtype)}

    return merged(apply(base, adapters, config))


def _targets(base: Params, config: LoraConfig) -> Iterator[tuple[_Path, Array]]:
    """(path, kernel) of every projection that gets an adapter."""
    wanted = LAYER_PROJECTIONS if config.targets is None else config.targets

    def walk(node: Any, path: _Path) -> Iterator[tuple[_Path, Array]]:
        if not isinstance(node, dict):
            return
        if path and path[-1] in wanted and "kernel" in node:
            if node["kernel"].ndim <= 3:
                yield path, node["kernel"]
            elif config.targets is not None:
                raise UserError(
                    f"lora.targets: {'/'.join(path)} belongs to a mixture of experts, "
                    "which takes no adapters; leave it out"
                )
        for name, child in node.items():
            yield from walk(child, (*path, name))

    found = list(walk(base, ()))
    absent = set(wanted) - {path[-1] for path, _ in found}
    if not found or (config.targets is not None and absent):
        raise UserError(
            f"lora.targets: {', '.join(sorted(absent))}: not in these parameters (tied "
            "embeddings are no lm_head); leave it out"
        )
    yield from found


def _on_targets(
    base: Params, config: LoraConfig, make: Callable[[_Path, Array], dict[str, Array]]
) -> Params:
    """A tree with what ``make`` gives at every target, and nothing else."""
    tree: dict[str, Any] = {}
    for path, kernel in _targets(base, config):
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = make(path, kernel)
    return tree
