"""The pytrees that travel between the stages, and the conventions they share.

Axes
    B sequences, T tokens (prompt + response), K completions of one prompt,
    V vocabulary, D model width, H heads, L layers.

Alignment
    Every per-token array is [B, T] and index t speaks about token t:

    * ``logprobs[:, t]`` = log π(tokens[:, t] | tokens[:, :t]), in nats;
    * ``values[:, t]``   = V of the state *before* token t;
    * ``rewards[:, t]``  = reward for emitting token t;
    * ``mask[:, t]``     = token t belongs to the loss, or was emitted by the policy.

    Column 0 is never a prediction. The one-step shift between what a model puts out
    and the tokens that it speaks about happens in ``ops.logprobs.align_to_tokens``.

Masks
    They come from lengths, never from ``token != pad``: pad may equal EOS. A response
    includes its EOS. What lies under a mask may be anything, NaN included: it changes
    neither value nor gradient.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array
Params = Any  # a pytree of arrays: what a linen module calls its variables' "params"


def join_params(frozen: Params | None, params: Params) -> Params:
    """All parameters of a network of which only some are trained: the union of trees.

    No reference. Steps differentiate ``params`` and take ``frozen`` as it is.

    Args:
      frozen: nested dicts of arrays that stay; None: all are trained.
      params: nested dicts of the others.

    Returns:
      One tree; no array is copied.

    Raises:
      ValueError: both have the same leaf.

    >>> join_params({"trunk": {"w": 1}}, {"trunk": {"lora": 2}, "head": 3})
    {'trunk': {'w': 1, 'lora': 2}, 'head': 3}
    """
    if frozen is None:
        return params
    both = dict(frozen)
    for name, child in params.items():
        if name not in both:
            both[name] = child
        elif isinstance(child, dict) and isinstance(both[name], dict):
            both[name] = join_params(both[name], child)
        else:
            raise ValueError(f"{name} is both frozen and trained")
    return both


@struct.dataclass
class TokenBatch:
    """Rows of tokens, padded on either side or packed."""

    tokens: Array  # [B, T] int32
    segment_ids: Array  # [B, T] int32: 0 = padding, 1, 2, … = sequences packed in a row
    positions: Array  # [B, T] int32: counts the real tokens of a segment only, from 0
    mask: Array  # [B, T] bool: tokens that the loss or the policy owns


@struct.dataclass
class PreferenceBatch:
    """Pairs of completions, the preferred one first: one a row, or S in a packed row.

    Packed, the two sides of a pair are the same segment s of the same row, and what is
    said of it is entry s − 1 of arrays [B, S]; a weight of 0 says that there is none.
    """

    chosen: TokenBatch
    rejected: TokenBatch
    margin: Array  # [B] or [B, S] float32: how much better chosen is, in score units
    weight: Array  # [B] or [B, S] float32: weight of the pair in the loss
    annotator: Array  # [B] or [B, S] int32: who judged, -1 = unknown


@struct.dataclass
class Rollout:
    """What the policy answered. ``batch.mask`` is "emitted by the policy".

    Packed (`data.pack_experience`), arrays [B] are [B, T]: entry s − 1 is of segment s.
    """

    batch: TokenBatch  # prompt (left-padded) and response (right-padded)
    logprobs: Array  # [B, T] float32 nats, at the sampling temperature: the loss's
    truncated: Array  # [B] bool: no stop token within the budget
    row: Array  # [B] int32: global row, which owns the key and the order; −1 = none
    raw_logprobs: Array  # [B, T] float32 nats, at temperature 1, nothing left out
    processed_logprobs: Array  # [B, T] float32 nats, after temperature and truncation
    kept: Array | None = None  # [B, T, ⌈V/8⌉] uint8: bits of the tokens that truncation
    # left, if asked for; logprobs are then over those alone, and so are the loss's


@struct.dataclass
class Experience:
    """A rollout with everything that a policy update needs."""

    rollout: Rollout
    ref_logprobs: Array | None  # [B, T] float32 nats, of the reference policy, if asked
    values: Array | None  # [B, T] float32, of the critic, where there is one
    rewards: Array  # [B, T] float32, score and KL penalty
    advantages: Array  # [B, T] float32
    returns: Array | None  # [B, T] float32, the critic's targets
    scores: Array  # [B] float32, one number a sequence


@struct.dataclass
class PolicyOutput:
    """A policy's view of the tokens of a batch, aligned with them."""

    logprobs: Array  # [B, T] float32 nats; column 0 is 0
    entropy: Array  # [B, T] float32 nats, of the distribution at token t
    values: Array | None  # [B, T] float32, V before token t; None without a critic


class Readout(NamedTuple):
    """What logits are made of: cap(hidden · unembed)."""

    hidden: Array  # [B, T, D]
    unembed: Array  # [D, V], of the same dtype
    softcap: float | None


class ModelOutput(NamedTuple):
    """What a policy network returns, *not* yet aligned: index t has read token t.

    ``values`` is None without a critic, ``cache`` is None unless asked for. With
    ``readout`` log-probs need no logits; under ``jax.jit`` those that nobody looks at
    are never computed.
    """

    logits: Array  # [B, T, V], for the token after t
    values: Array | None = None  # [B, T] float32, of the state after token t
    cache: Any = None  # pytree of the model's own
    readout: Readout | None = None  # None: there are only logits


class ApplyFn(Protocol):
    """A policy: all that sampling and the policy steps know about a model.

    With ``cache_size`` the network also returns a cache with that many token slots,
    holding the batch (prefill). With ``cache`` the batch's tokens follow those in the
    cache (decode).
    """

    def __call__(
        self,
        params: Params,
        batch: TokenBatch,
        *,
        cache: Any = None,
        cache_size: int | None = None,
    ) -> ModelOutput: ...


class ScoreFn(Protocol):
    """A reward network: ``(params, batch) -> [B, T, N]`` float32, index t read token t.

    N = 1 for scalar rewards and critics, 2 for the binary classifier. With ``at``
    [B, S] int32 it returns the entries of these columns alone, [B, S, N]: whoever reads
    one score a sequence asks so, and a network need not compute the others.
    """

    def __call__(
        self, params: Params, batch: TokenBatch, *, at: Array | None = None
    ) -> Array: ...


@struct.dataclass
class Metrics:
    """Named (sum, count) pairs and maxima: they combine exactly.

    Sums and counts add over micro-batches and devices and divide once, at the end.

    >>> a = Metrics.of({"loss": (6.0, 3)})
    >>> b = Metrics.of({"loss": (2.0, 1)}, maxima={"ratio_max": 1.5})
    >>> (a + b).compute()
    {'loss': 2.0, 'ratio_max': 1.5}
    """

    sums: dict[str, Array]
    counts: dict[str, Array]
    maxima: dict[str, Array]

    @classmethod
    def of(
        cls, means: dict[str, tuple[Any, Any]], maxima: dict[str, Any] | None = None
    ) -> "Metrics":
        """Metrics from ``{name: (sum, count)}`` and ``{name: maximum}``."""
        f32 = lambda x: jnp.asarray(x, jnp.float32)
        return cls(
            sums={k: f32(s) for k, (s, _) in means.items()},
            counts={k: f32(c) for k, (_, c) in means.items()},
            maxima={k: f32(m) for k, m in (maxima or {}).items()},
        )

    def __add__(self, other: "Metrics") -> "Metrics":
        """Combines two sets; a name in only one of them is kept as it is."""
        both = lambda f, a, b: {
            k: f(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k))
            for k in {**a, **b}
        }
        return Metrics(
            sums=both(jnp.add, self.sums, other.sums),
            counts=both(jnp.add, self.counts, other.counts),
            maxima=both(jnp.maximum, self.maxima, other.maxima),
        )

    def collapse(self) -> "Metrics":
        """Combines along every leading axis, as ``lax.scan`` stacks them."""
        return Metrics(
            sums=jax.tree.map(jnp.sum, self.sums),
            counts=jax.tree.map(jnp.sum, self.counts),
            maxima=jax.tree.map(jnp.max, self.maxima),
        )

    def reduce(self, axis_name: str | None) -> "Metrics":
        """Combines over the devices of a mapped axis; None leaves it as it is."""
        if axis_name is None:
            return self
        return Metrics(
            sums=jax.lax.psum(self.sums, axis_name),
            counts=jax.lax.psum(self.counts, axis_name),
            maxima=jax.lax.pmax(self.maxima, axis_name),
        )

    def compute(self) -> dict[str, float]:
        """Means and maxima as Python floats; a mean over nothing is NaN."""
        host = jax.device_get(self)
        means = {
            k: float(s) / float(host.counts[k]) if host.counts[k] else float("nan")
            for k, s in host.sums.items()
        }
        return means | {k: float(m) for k, m in host.maxima.items()}
