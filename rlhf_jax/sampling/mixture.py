"""A policy between two others."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from rlhf_jax.errors import UserError
from rlhf_jax.types import ApplyFn, Array, ModelOutput, Params, TokenBatch


@struct.dataclass
class MixtureCache:
    """The caches of both policies, which always hold the same tokens."""

    policy: Any
    reference: Any

    def share(self, times: int, columns: int) -> "MixtureCache":
        """See `models.KVCache.share`; and so on."""
        return self._both("share", times, columns)

    def repeat(self, times: int) -> "MixtureCache":
        return self._both("repeat", times)

    def take(self, rows: Array) -> "MixtureCache":
        return self._both("take", rows)

    def widen(self, columns: int) -> "MixtureCache":
        return self._both("widen", columns)

    def insert(self, fresh: "MixtureCache", rows: Array) -> "MixtureCache":
        return MixtureCache(
            self.policy.insert(fresh.policy, rows),
            self.reference.insert(fresh.reference, rows),
        )

    def _both(self, method: str, *args: Any) -> "MixtureCache":
        both = (getattr(x, method)(*args) for x in (self.policy, self.reference))
        return MixtureCache(*both)


def mixture_apply(apply_fn: ApplyFn, ref_apply_fn: ApplyFn, *, alpha: float) -> ApplyFn:
    """The geometric mixture of two policies, token by token: ∝ π^(1−α) · π_ref^α.

    Munos et al. 2023 (Nash-MD), arXiv:2312.00886, section 7: what the policy is
    compared with. Its logits are (1−α) z + α z_ref; the mixture of whole completions
    would have another normaliser.

    Args:
      apply_fn: the policy π.
      ref_apply_fn: the other policy, of the same vocabulary.
      alpha: α, 0 to 1: 0 is π, 1 is π_ref.

    Returns:
      An `ApplyFn` of parameters {"policy": …, "reference": …}, without a critic, with
      float32 logits of finite ones.

    Raises:
      UserError: alpha is outside 0 … 1.

    >>> table = lambda logits, batch, **_: ModelOutput(
    ...     jnp.broadcast_to(logits, (*batch.tokens.shape, 2)))
    >>> one = jnp.ones((1, 1), int)
    >>> batch = TokenBatch(one, one, 0 * one, one == 1)
    >>> mixed = mixture_apply(table, table, alpha=0.25)
    >>> params = {"policy": jnp.array([0.0, 4.0]), "reference": jnp.array([8.0, 0.0])}
    >>> mixed(params, batch).logits.tolist()
    [[[2.0, 3.0]]]
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"mixture = {alpha}: expected 0 (the policy) to 1 (reference)")

    def mixed(
        params: Params,
        batch: TokenBatch,
        *,
        cache: MixtureCache | None = None,
        cache_size: int | None = None,
    ) -> ModelOutput:
        caches = (None, None) if cache is None else (cache.policy, cache.reference)
        ours = apply_fn(params["policy"], batch, cache=caches[0], cache_size=cache_size)
        theirs = ref_apply_fn(
            params["reference"], batch, cache=caches[1], cache_size=cache_size
        )
        cached = ours.cache is not None
        logits = [x.logits.astype(jnp.float32) for x in (ours, theirs)]
        return ModelOutput(
            (1 - alpha) * logits[0] + alpha * logits[1],
            cache=MixtureCache(ours.cache, theirs.cache) if cached else None,
        )

    return mixed
