"""How much each token counts in a loss."""

from typing import Literal, get_args

import chex
import jax.numpy as jnp

from rlhf_jax.masking import segment_sum
from rlhf_jax.types import Array

Reduction = Literal["token", "sequence", "constant"]


def loss_weights(
    mask: Array,
    segment_ids: Array | None = None,
    *,
    kind: Reduction = "token",
    length: float | None = None,
) -> tuple[Array, Array]:
    """Weights and a count that reduce terms to a loss: L = Σ wₜℓₜ / Σ count.

    With nᵢ the unmasked tokens of sequence i, and N the sequences that have any:

    * token: w = 1, count = Σ nᵢ. The mean over all tokens: PPO, DAPO (Yu et al. 2025,
      arXiv:2503.14476, eq. 8).
    * sequence: w = 1/nᵢ, count = N. The mean over sequences of the mean over their
      tokens: GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 3), GSPO.
    * constant: w = 1/length, count = N. The sum over a sequence's tokens divided by the
      same number for all: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, §3.2), whose
      code takes the response budget. With length 1 the gradient of a sequence's
      log-prob is whole, as in REINFORCE.

    Both Σ are over the global batch, devices and micro-batches, before the division. A
    sequence without an unmasked token is not counted; TRL's grpo and dr_grpo count its
    row.

    Args:
      mask: [B, T] bool, the policy's tokens.
      segment_ids: [B, T] int32, 0 … T, equal for the tokens of a sequence; None: a row
        is one sequence. For "token" it changes nothing.
      kind: what is averaged over.
      length: tokens, more than 0; for "constant" only.

    Returns:
      weights: [B, T] float32, 0 where masked.
      count: float32 scalar, of this part of the batch.

    Raises:
      ValueError: if kind is unknown, or length is missing, not positive, or given to
        another kind.

    >>> mask = jnp.array([[True, True, True, False]])
    >>> weights, count = loss_weights(mask, jnp.array([[1, 1, 2, 0]]), kind="sequence")
    >>> weights.tolist(), float(count)
    ([[0.5, 0.5, 1.0, 0.0]], 2.0)
    """
    _check(kind, length)
    chex.assert_rank(mask, 2)
    chex.assert_type(mask, bool)
    ones = mask.astype(jnp.float32)
    if kind == "token":
        return ones, jnp.sum(ones)
    share = ones / jnp.maximum(segment_sum(ones, mask, segment_ids), 1.0)
    # The shares of a sequence's tokens sum to 1, but for a rounding error.
    count = jnp.sum(jnp.round(jnp.sum(share, axis=1)))
    return (share, count) if length is None else (ones / length, count)


def _check(kind: str, length: float | None) -> None:
    if kind not in get_args(Reduction):
        raise ValueError(
            f"loss_weights: kind = {kind!r}, expected token, sequence or constant"
        )
    if kind != "constant" and length is not None:
        raise ValueError(f"loss_weights: length = {length} is for constant, not {kind}")
    if kind == "constant" and not (length is not None and length > 0):
        raise ValueError(
            f"loss_weights: length = {length}, expected more than 0 tokens for constant"
        )
