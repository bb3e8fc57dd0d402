"""A policy's view of a batch, aligned with its tokens."""

import jax
import jax.numpy as jnp

from rlhf_jax.masking import segment_masks
from rlhf_jax.ops.fused_logprobs import fused_token_logprobs
from rlhf_jax.ops.logits import keep_only
from rlhf_jax.ops.logprobs import align_to_tokens, token_entropy, token_logprobs
from rlhf_jax.types import (
    ApplyFn,
    Array,
    ModelOutput,
    Params,
    PolicyOutput,
    PreferenceBatch,
    TokenBatch,
)


def policy_forward(
    apply_fn: ApplyFn,
    params: Params,
    batch: TokenBatch,
    *,
    temperature: float,
    kept: Array | None = None,
) -> PolicyOutput:
    """Log-probs, entropy, values of every token: log π(aₜ | sₜ), H(π(· | sₜ)), V(sₜ).

    No reference. What the caller does not use costs nothing under ``jax.jit``. Where
    the network says what its logits are made of, they are never there as a whole
    (`fused_token_logprobs`), unless ``kept`` asks for them.

    Args:
      apply_fn: the network.
      params: its parameters.
      batch: [B, T] tokens; where the mask is False the result means nothing.
      temperature: divides the logits; the one that the tokens were sampled at.
      kept: [B, T, ⌈V/8⌉] uint8, the tokens that a truncated sampler could draw
        (`Rollout.kept`); π is then over those alone. None: all.

    Returns:
      PolicyOutput of float32 [B, T]; values are None for a network without a critic.

    >>> import jax.numpy as jnp
    >>> from rlhf_jax.types import ModelOutput
    >>> uniform = lambda params, batch: ModelOutput(jnp.zeros((*batch.tokens.shape, 4)))
    >>> ones = jnp.ones((1, 3), int)
    >>> batch = TokenBatch(ones, ones, jnp.arange(3)[None], ones == 1)
    >>> policy_forward(uniform, {}, batch, temperature=1.0).logprobs.round(2).tolist()
    [[0.0, -1.3899999856948853, -1.3899999856948853]]
    """
    output = apply_fn(params, batch)
    return policy_view(output, batch, temperature=temperature, kept=kept)


def policy_view(
    output: ModelOutput,
    batch: TokenBatch,
    *,
    temperature: float,
    kept: Array | None = None,
) -> PolicyOutput:
    """`policy_forward` of what the network has said already."""
    values = None if output.values is None else align_to_tokens(output.values)
    if output.readout is not None and kept is None:
        hidden, unembed, softcap = output.readout
        logprobs, entropy = fused_token_logprobs(
            hidden, unembed, batch.tokens, temperature=temperature, softcap=softcap
        )
        return PolicyOutput(logprobs=logprobs, entropy=entropy, values=values)
    logits = output.logits if kept is None else keep_only(output.logits, kept)
    return PolicyOutput(
        logprobs=token_logprobs(logits, batch.tokens, temperature=temperature),
        entropy=token_entropy(logits, temperature=temperature),
        values=values,
    )


def both_sides(pairs: PreferenceBatch) -> tuple[TokenBatch, Array]:
    """Chosen rows, then rejected rows, for one call of a network. No reference.

    Args:
      pairs: B rows of S pairs each; S = 1 where they are not packed.

    Returns:
      (TokenBatch [2B, T], [2B, S, T] bool: the real tokens of each pair's side).
    """
    both = jax.tree.map(
        lambda c, r: jnp.concatenate([c, r]), pairs.chosen, pairs.rejected
    )
    return both, segment_masks(both.segment_ids, pairs.weight[0].size)
