"""The loss of supervised fine-tuning."""

import chex
import jax.numpy as jnp

from rlhf_jax.masking import masked_sum
from rlhf_jax.types import Array, Metrics


def supervised_loss(logprobs: Array, mask: Array) -> tuple[Array, Metrics]:
    """Negative log-likelihood of the tokens that the loss owns: Lₜ = −log πₜ.

    No reference.

    Args:
      logprobs: [B, T] float nats, see ``token_logprobs``.
      mask: [B, T] bool, the tokens to learn.

    Returns:
      terms: [B, T] float32 nats, 0 where masked; reduce them with ``masked_mean``.
      metrics: ``sft/loss``, nats a token, mean over unmasked tokens.

    >>> mask = jnp.array([[False, True]])
    >>> terms, metrics = supervised_loss(jnp.array([[0.0, -2.0]]), mask)
    >>> terms.tolist(), metrics.compute()
    ([[0.0, 2.0]], {'sft/loss': 2.0})
    """
    chex.assert_rank([logprobs, mask], 2)
    chex.assert_equal_shape([logprobs, mask])
    chex.assert_type(mask, bool)
    terms = jnp.where(mask, -logprobs.astype(jnp.float32), 0.0)
    return terms, Metrics.of({"sft/loss": masked_sum(terms, mask)})
