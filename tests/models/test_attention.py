"""Attention in blocks, with a backward pass of its own, beside the plain formula."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from models.tiny import quick_jit

from rlhf_jax.models import TransformerConfig
from rlhf_jax.models.attention import attend
from rlhf_jax.models.masks import attention_mask, block_masks
from rlhf_jax.sharding import make_mesh, on_mesh

CONFIG = TransformerConfig(
    vocab_size=8, d_model=8, n_layers=1, n_heads=4, n_kv_heads=2, d_head=8, d_ff=8,
    max_length=512,
)  # fmt: skip


def plain(q_BTHd, k_BTKd, v_BTKd, mask_BTT, c):
    groups = c.n_heads // c.n_kv_heads
    k_BTHd, v_BTHd = (jnp.repeat(x, groups, axis=2) for x in (k_BTKd, v_BTKd))
    scores = jnp.einsum("BTHd,BSHd->BHTS", q_BTHd, k_BTHd) * c.d_head**-0.5
    if c.attn_softcap is not None:
        scores = c.attn_softcap * jnp.tanh(scores / c.attn_softcap)
    scores = jnp.where(mask_BTT[:, None], scores, -1e30)
    return jnp.einsum("BHTS,BSHd->BTHd", jax.nn.softmax(scores), v_BTHd)


def arrays(tokens, heads=(4, 2, 2, 4), dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(tokens), 4)
    shape = lambda h: (3, tokens, h, CONFIG.d_head)
    draw = lambda key, h: (2 * jax.random.normal(key, shape(h))).astype(dtype)
    return [draw(key, h) for key, h in zip(keys, heads, strict=True)]


def segments(tokens):
    """Padding on the left, two packed sequences, one whole row."""
    rows = np.ones((3, tokens), np.int32)
    rows[0, : tokens // 4] = 0
    rows[1, tokens // 2 :] = 2
    return jnp.asarray(rows)


def both(f, sequence, window, c):
    """(numbers, gradients) on a mesh that cuts rows, of queries to segments."""
    mesh = make_mesh(jax.devices()[:sequence], sequence=sequence)
    whole = NamedSharding(mesh, PartitionSpec())

    def run(q, k, v, pull, ids):
        real = (ids > 0)[:, :, None, None]
        answer = lambda *x: jnp.where(real, f(*x, ids, window, c), 0)
        return answer(q, k, v), jax.vjp(answer, q, k, v)[1](pull)

    return quick_jit(on_mesh(run, mesh), in_shardings=whole)


def in_blocks(q, k, v, ids, window, c):
    return attend(q, k, v, block_masks(ids, window), c)


def at_once(q, k, v, ids, window, c):
    return plain(q, k, v, attention_mask(ids, ids, jnp.int32(0), window), c)


def check(tokens, sequence, window, c):
    given = (*arrays(tokens), segments(tokens))
    chex.assert_trees_all_close(
        both(in_blocks, sequence, window, c)(*given),
        both(at_once, 1, window, c)(*given),
        rtol=1e-5,
        atol=3e-5,
    )


@pytest.mark.parametrize("tokens", [1, 64, 65, 150, 530])  # 530: blocks of 67
@pytest.mark.parametrize("options", [{}, {"attn_softcap": 3.0}])
@pytest.mark.parametrize("window", [None, 40])
def test_numbers_and_gradients_are_the_plain_ones(tokens, options, window):
    check(tokens, 1, window, dataclasses.replace(CONFIG, **options))


# Blocks of 8, of as many over more devices, one of 72, and a row that stays whole.
@pytest.mark.parametrize("tokens, sequence", [(64, 2), (64, 4), (72, 4), (65, 2)])
def test_cut_rows_change_nothing(tokens, sequence):
    check(tokens, sequence, 40, dataclasses.replace(CONFIG, attn_softcap=3.0))


@quick_jit
def with_gradients(masks, q, k, v, pull):
    answer, back = jax.vjp(lambda q, k, v: attend(q, k, v, masks, CONFIG), q, k, v)
    return answer, *back(pull)


def test_padding_gets_a_finite_number_and_passes_no_gradient():
    q, k, v, pull = arrays(70)
    ids = segments(70)
    masks = block_masks(ids)
    padding = (ids == 0)[:, :, None, None]
    answer, *gradients = with_gradients(masks, q, k, v, jnp.where(padding, pull, 0))
    assert jnp.isfinite(answer).all()
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_stays_near_float32():
    q, k, v, pull = arrays(150, dtype=jnp.bfloat16)
    masks = block_masks(segments(150))
    found = with_gradients(masks, q, k, v, pull)
    wide = (x.astype(jnp.float32) for x in (q, k, v, pull))
    expected = with_gradients(masks, *wide)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        assert jnp.abs(x.astype(jnp.float32) - y).max() < 0.02 * jnp.abs(y).max()
