"""Log-probs and entropies from hidden states, a slice of the vocabulary at a time.

The logits of a batch, [B, T, V], are by far the largest array of a language model's
training step. Nothing here holds them: forward, a slice of them leaves its maximum, its
sum and its part of the entropy; backward, it is computed again. A vocabulary of one
slice is kept instead, for the backward pass follows at once.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from rlhf_jax.ops.logits import scale_by_temperature
from rlhf_jax.ops.logprobs import align_to_tokens
from rlhf_jax.rows import join_rows, split_rows, spread, whole_columns
from rlhf_jax.types import Array

NAME = "logprobs"  # of its operations, in profiles
CHUNK = 8_192  # columns of the vocabulary: 64 MB of float32 logits for 2,048 tokens


def fused_token_logprobs(
    hidden: Array,
    unembed: Array,
    tokens: Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Array, Array]:
    """`token_logprobs` and `token_entropy` of z = cap(h·W)/τ, without z.

    log πₜ = zₜ₋₁[xₜ] − log Σᵥ exp zₜ₋₁[v], Hₜ = −Σᵥ pᵥ log pᵥ. The running maximum and
    sum are those of Milakov & Gimelshein 2018, arXiv:1805.02867; that logits are
    computed again for the gradient, of Wijmans et al. 2024, arXiv:2411.09009.

    Args:
      hidden: [B, T, D] float, index t has read token t.
      unembed: [D, V] float of the same dtype; products are summed in float32.
      tokens: [B, T] int, in 0 … V - 1; ids outside get NaN.
      temperature: τ > 0, a number.
      softcap: c of c·tanh(x/c), before the temperature; None: no cap.
      chunk_size: most columns of the vocabulary at a time.

    Returns:
      (log-probs, entropies), [B, T] float32 nats, index t is about token t; column 0 is
      0. No mask: a row of hidden states reaches only its own token's entries, and where
      the gradients of both are 0, no gradient at all, whatever it holds.

    Raises:
      ValueError: a temperature or a chunk that is not positive.

    >>> hidden, unembed = jnp.ones((1, 2, 3)), jnp.zeros((3, 4))
    >>> logprobs, entropy = fused_token_logprobs(hidden, unembed, jnp.array([[0, 1]]))
    >>> logprobs.round(3).tolist(), entropy.round(3).tolist()
    ([[0.0, -1.3860000371932983]], [[0.0, 1.3860000371932983]])
    """
    chex.assert_rank([hidden, unembed, tokens], [3, 2, 2])
    chex.assert_equal_shape_prefix([hidden, tokens], 2)
    chex.assert_type([hidden, unembed, tokens], [float, float, int])
    if chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size}, expected 1 or more")
    scale_by_temperature(jnp.zeros(1), temperature)  # checks it
    next_tokens = spread(join_rows(jnp.roll(tokens, -1, axis=1)))
    how = _How(temperature, softcap, chunk_size)
    if chunk_size < unembed.shape[1]:
        unembed = whole_columns(unembed)
    both: Any = _fused(how, spread(join_rows(hidden)), unembed, next_tokens)
    logprobs, entropy = (split_rows(x, tokens.shape[0]) for x in both)
    return align_to_tokens(logprobs), align_to_tokens(entropy)


class _How(NamedTuple):
    temperature: float
    softcap: float | None
    chunk_size: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@jax.named_scope(NAME)
def _fused(
    how: _How, hidden_ND: Array, unembed_DV: Array, targets_N: Array
) -> tuple[Array, Array]:
    return _forward(how, hidden_ND, unembed_DV, targets_N)[0]


@jax.named_scope(NAME)
def _forward(how: _How, hidden_ND: Array, unembed_DV: Array, targets_N: Array):
    rows, vocab = hidden_ND.shape[0], unembed_DV.shape[1]

    def add(carry: tuple[Array, ...], chunk: Array):
        """The running maximum m, Σ exp(z − m), Σ exp(z − m)·(z − m), and z[target]."""
        max_N, sum_N, dot_N, chosen_N = carry
        z_NC, columns_C, counted_1C = _chunk(how, hidden_ND, unembed_DV, chunk)
        z_NC = jnp.where(counted_1C, z_NC, -jnp.inf)
        here_NC = columns_C[None] == targets_N[:, None]
        chosen_N += jnp.sum(jnp.where(here_NC & counted_1C, z_NC, 0.0), axis=1)
        new_N = jnp.maximum(max_N, jnp.max(z_NC, axis=1))
        centred_NC = z_NC - new_N[:, None]
        weights_NC = jnp.exp(centred_NC)
        down_N = max_N - new_N
        old_N = jnp.exp(down_N)
        surprise_NC = jnp.where(counted_1C, weights_NC * centred_NC, 0.0)
        dot_N = old_N * (dot_N + sum_N * down_N) + jnp.sum(surprise_NC, axis=1)
        sum_N = old_N * sum_N + jnp.sum(weights_NC, axis=1)
        return (new_N, sum_N, dot_N, chosen_N), z_NC if _chunks(
            how, vocab
        ) == 1 else None

    zeros = jnp.zeros(rows, jnp.float32)
    least = jnp.full(rows, jnp.finfo(jnp.float32).min)
    carry = (least, zeros, zeros, zeros)
    (max_N, sum_N, dot_N, chosen_N), only_NC = _over_chunks(how, vocab, add, carry)
    log_total_N = max_N + jnp.log(sum_N)
    entropy_N = jnp.log(sum_N) - dot_N / sum_N
    known_N = (targets_N >= 0) & (targets_N < vocab)
    logprobs_N = jnp.where(known_N, chosen_N - log_total_N, jnp.nan)
    kept = (hidden_ND, unembed_DV, targets_N, log_total_N, entropy_N, only_NC)
    return (logprobs_N, entropy_N), kept


@jax.named_scope(NAME)
def _backward(how: _How, kept: tuple, grads: tuple[Array | SymbolicZero, ...]):
    """∂log π/∂z = [v = x] − p and ∂H/∂z = −p·(log p + H), a slice after the other."""
    hidden_ND, unembed_DV, targets_N, log_total_N, entropy_N, only_NC = kept
    by_logprob_N1, by_entropy_N1 = (
        None if isinstance(g, SymbolicZero) else g[:, None] for g in grads
    )
    if by_logprob_N1 is None:
        by_logprob_N1 = jnp.zeros_like(log_total_N)[:, None]
    # A row that nothing depends on gets no gradient, and gives none: 0 · NaN is NaN.
    used_N1 = by_logprob_N1 != 0
    if by_entropy_N1 is not None:
        used_N1 |= by_entropy_N1 != 0
    hidden_ND = jnp.where(used_N1, hidden_ND, 0)

    def add(carry: tuple[Array, Array], chunk: Array):
        by_hidden_ND, by_unembed_DV = carry
        z_NC, columns_C, counted_1C = _chunk(how, hidden_ND, unembed_DV, chunk, only_NC)
        logp_NC = z_NC - log_total_N[:, None]
        here_NC = columns_C[None] == targets_N[:, None]
        pull_NC = by_logprob_N1
        if by_entropy_N1 is not None:  # else nothing of the entropy is computed
            pull_NC += by_entropy_N1 * (logp_NC + entropy_N[:, None])
        by_z_NC = jnp.where(here_NC, by_logprob_N1, 0.0) - jnp.exp(logp_NC) * pull_NC
        by_z_NC = jnp.where(used_N1 & counted_1C, by_z_NC, 0.0) / how.temperature
        if how.softcap is not None:
            capped_NC = z_NC * how.temperature / how.softcap
            by_z_NC = by_z_NC * (1.0 - jnp.square(capped_NC))
        by_z_NC = by_z_NC.astype(hidden_ND.dtype)
        slice_DC = jax.lax.dynamic_slice_in_dim(
            unembed_DV, columns_C[0], columns_C.size, axis=1
        )
        by_hidden_ND += _dot(by_z_NC, slice_DC, ((1,), (1,)))
        held_DC = jax.lax.dynamic_slice_in_dim(
            by_unembed_DV, columns_C[0], columns_C.size, axis=1
        )
        held_DC += _dot(hidden_ND, by_z_NC, ((0,), (0,)))
        by_unembed_DV = jax.lax.dynamic_update_slice_in_dim(
            by_unembed_DV, held_DC, columns_C[0], axis=1
        )
        return (by_hidden_ND, by_unembed_DV), None

    f32 = lambda x: jnp.zeros(x.shape, jnp.float32)
    vocab, zeros_DV = unembed_DV.shape[1], f32(unembed_DV)
    if _chunks(how, vocab) > 1:
        zeros_DV = whole_columns(zeros_DV)
    carry = (f32(hidden_ND), zeros_DV)
    (by_hidden_ND, by_unembed_DV), _ = _over_chunks(how, vocab, add, carry)
    return (
        by_hidden_ND.astype(hidden_ND.dtype),
        by_unembed_DV.astype(unembed_DV.dtype),
        None,
    )


def _forward_rule(how: _How, *primals: CustomVJPPrimal):
    return _forward(how, *(primal.value for primal in primals))


_fused.defvjp(_forward_rule, _backward, symbolic_zeros=True)


def _chunks(how: _How, vocab: int) -> int:
    return -(-vocab // how.chunk_size)


def _over_chunks(how: _How, vocab: int, add, carry):
    chunks = _chunks(how, vocab)
    if chunks == 1:
        return add(carry, jnp.int32(0))
    return jax.lax.scan(add, carry, jnp.arange(chunks, dtype=jnp.int32))


def _chunk(
    how: _How,
    hidden_ND: Array,
    unembed_DV: Array,
    chunk: Array,
    z_NC: Array | None = None,
) -> tuple[Array, Array, Array]:
    """(logits [N, C], their columns [C], whether no earlier slice had them [1, C]).

    All slices are equally wide; the last one begins where it ends with the vocabulary.
    Logits that are given are not computed again.
    """
    vocab = unembed_DV.shape[1]
    width = -(-vocab // _chunks(how, vocab))
    start = jnp.minimum(chunk * width, vocab - width)
    columns_C = start + jnp.arange(width, dtype=jnp.int32)
    if z_NC is None:
        slice_DC = jax.lax.dynamic_slice_in_dim(unembed_DV, start, width, axis=1)
        z_NC = _dot(hidden_ND, slice_DC, ((1,), (0,)))
        if how.softcap is not None:
            z_NC = how.softcap * jnp.tanh(z_NC / how.softcap)
        z_NC = z_NC / how.temperature
    if width == vocab:  # what is known to be true costs nothing
        return z_NC, columns_C, jnp.ones((1, 1), bool)
    return z_NC, columns_C, (columns_C >= chunk * width)[None]


def _dot(x: Array, y: Array, contracted: tuple) -> Array:
    """In float32 whatever the dtype."""
    return jax.lax.dot_general(
        x, y, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
