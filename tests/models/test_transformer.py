"""The decoder: what may influence what, with and without a cache."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import batch_of

from rlhf_jax.models import (
    CausalLM,
    Transformer,
    TransformerConfig,
    init_params,
    policy_apply,
)
from rlhf_jax.models.transformer import EMBEDDING_STD

PACKED = [[1, 1, 1, 2, 2, 2, 2, 0], [0, 0, 1, 1, 1, 2, 2, 2]]


def test_gradients_reach_back_and_never_forward(config, params):
    """Distinct tokens: row v of d logits[t] / d embedding is token v's influence."""
    batch = batch_of([[1] * 6])
    batch = dataclasses.replace(batch, tokens=jnp.arange(6)[None])
    forward = policy_apply(config)

    def logits(embedding):
        trunk = params["trunk"] | {"embed": {"embedding": embedding}}
        return forward(params | {"trunk": trunk}, batch).logits[0].sum(axis=-1)

    influence = jax.jit(jax.jacrev(logits))(params["trunk"]["embed"]["embedding"])
    influence = np.abs(influence[:, :6]).sum(axis=-1)  # [t, source token]
    assert (influence[np.triu_indices(6, 1)] == 0).all()
    assert (influence[np.tril_indices(6)] > 1e-4).all()


@pytest.mark.fault(20)
def test_left_padding_changes_nothing(forward, params):
    plain = batch_of([[1, 1, 1, 1]])
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (3, 0))), plain)
    chex.assert_trees_all_close(
        forward(params, padded).logits[:, 3:], forward(params, plain).logits, atol=1e-5
    )


@pytest.mark.fault(20)
@pytest.mark.parametrize("garbage", [7, -1, 2**31 - 1])
def test_what_stands_under_padding_changes_nothing(config, params, garbage):
    batch = batch_of(PACKED)
    real = batch.segment_ids > 0
    dirty = dataclasses.replace(
        batch,
        tokens=jnp.where(real, batch.tokens, garbage),
        positions=jnp.where(real, batch.positions, garbage),
        mask=~batch.mask,
    )

    def loss(params, batch):
        logits = policy_apply(config)(params, batch).logits
        return jnp.sum(jnp.where(real[..., None], logits, 0.0) ** 2), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    clean = run(params, batch)
    chex.assert_tree_all_finite(clean)
    chex.assert_trees_all_equal(run(params, dirty), clean)


@pytest.mark.fault(17)
def test_a_row_of_padding_is_finite(config, params):
    loss = lambda p: jnp.sum(policy_apply(config)(p, batch_of([[0] * 8])).logits)
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss))(params))


def test_packed_segments_are_separate_rows(forward, params):
    batch = batch_of(PACKED)
    packed = forward(params, batch).logits
    for row, segment in [(0, 1), (0, 2), (1, 1), (1, 2)]:
        at = np.flatnonzero(np.array(PACKED[row]) == segment)
        alone = jax.tree.map(lambda x, row=row, at=at: x[row, at][None], batch)
        alone = dataclasses.replace(alone, segment_ids=jnp.ones_like(alone.tokens))
        chex.assert_trees_all_close(
            packed[row, at], forward(params, alone).logits[0], atol=1e-5
        )


@pytest.mark.parametrize("prefill", [0, 1, 5])
def test_cached_decode_is_the_full_forward(forward, params, prefill):
    """Packed and padded rows, token by token after a prefill of some columns."""
    batch = batch_of([[1, 1, 1, 2, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 0, 0]])
    columns = lambda i, j: jax.tree.map(lambda x: x[:, i:j], batch)
    output = forward(params, columns(0, prefill), cache_size=11)
    parts = [output.logits]
    for t in range(prefill, 8):
        output = forward(params, columns(t, t + 1), cache=output.cache)
        parts.append(output.logits)
    assert output.cache.index == 8
    assert len(output.cache.layers) == 2
    for layer in output.cache.layers:
        assert layer.keys.shape == (2, 2, 6, 11) and layer.values.shape == (2, 2, 11, 6)
        assert (layer.keys[..., 8:] == 0).all() and (layer.values[:, :, 8:] == 0).all()
    real = batch.segment_ids > 0
    expected = forward(params, batch)
    assert expected.cache is None
    chex.assert_trees_all_close(
        jnp.concatenate(parts, axis=1)[real], expected.logits[real], atol=1e-5
    )


def _loss_and_grad(config, params, batch):
    def loss(params):
        return jnp.mean(jax.nn.log_softmax(policy_apply(config)(params, batch).logits))

    return jax.jit(jax.value_and_grad(loss))(params)


def test_memory_and_speed_options_change_no_number(config, params):
    batch = batch_of(PACKED)
    plain = _loss_and_grad(config, params, batch)
    for change in ({"remat": True}, {"scan_unroll": 2}):
        changed = _loss_and_grad(dataclasses.replace(config, **change), params, batch)
        chex.assert_trees_all_close(changed, plain, atol=1e-6)


def test_what_a_layer_keeps_for_its_backward_pass(config):
    config = dataclasses.replace(config, d_ff=40)  # a width that nothing else has
    params = init_params(CausalLM(config), key=jax.random.key(0))
    batch = batch_of(PACKED[:1])

    def kept(remat: bool) -> list[tuple[int, ...]]:
        apply_fn = policy_apply(dataclasses.replace(config, remat=remat))
        pull = jax.eval_shape(
            lambda p: jax.vjp(lambda p: apply_fn(p, batch).logits, p)[1], params
        )
        return [x.shape for x in jax.tree.leaves(pull)]

    width = (config.n_layers, batch.tokens.size, config.d_ff)
    assert kept(remat=False).count(width) == 2  # gate and up; not what follows them
    assert kept(remat=True).count(width) == 0


@pytest.mark.parametrize("unroll", [1, 2])
def test_unroll_is_in_the_program(config, params, unroll):
    config = dataclasses.replace(config, scan_unroll=unroll)
    program = jax.make_jaxpr(policy_apply(config))(params, batch_of(PACKED))
    assert f"unroll={unroll}" in str(program)


def test_bfloat16_computes_in_it_and_answers_in_float32(config, forward, params):
    low = dataclasses.replace(config, dtype="bfloat16")
    batch = batch_of(PACKED)
    apply_fn = jax.jit(policy_apply(low), static_argnames="cache_size")
    output: Any = apply_fn(params, batch, cache_size=8)
    assert output.logits.dtype == jnp.float32
    dtypes = {x.dtype for x in jax.tree.leaves(output.cache.layers)}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    exact = forward(params, batch).logits
    real = batch.segment_ids > 0
    error = jnp.abs(output.logits - exact)[real].max() / jnp.abs(exact)[real].max()
    assert 1e-4 < error < 5e-2  # 8 bits of mantissa, and really used
    half = dataclasses.replace(low, param_dtype="bfloat16")
    leaves = jax.tree.leaves(init_params(CausalLM(half), key=jax.random.key(0)))
    assert {leaf.dtype.name for leaf in leaves} == {"bfloat16"}


@pytest.mark.parametrize("tie", [False, True])
def test_logits_keep_float32_sums_in_bfloat16(config, params, tie):
    """Rounding sums to bfloat16 would leave no more than 8 bits in each logit."""
    low = dataclasses.replace(config, dtype="bfloat16", tie_embeddings=tie)
    logits = jax.jit(policy_apply(low))(params, batch_of(PACKED)).logits
    assert (logits != logits.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9


def test_initial_scales():
    """Embedding 0.02, projections 1/√in, into the residual stream 1/√(2L·in)."""
    config = TransformerConfig(
        vocab_size=200,
        d_model=128,
        n_layers=8,
        n_heads=4,
        n_kv_heads=2,
        d_head=16,
        d_ff=256,
        max_length=8,
    )
    params = init_params(CausalLM(config), key=jax.random.key(0))
    blocks = params["trunk"]["blocks"]
    expected = [
        (params["trunk"]["embed"]["embedding"], EMBEDDING_STD),
        (params["lm_head"]["kernel"], EMBEDDING_STD),
        (blocks["attn"]["q_proj"]["kernel"], 128**-0.5),
        (blocks["mlp"]["up_proj"]["kernel"], 128**-0.5),
        (blocks["attn"]["o_proj"]["kernel"], (16 * 64) ** -0.5),
        (blocks["mlp"]["down_proj"]["kernel"], (16 * 256) ** -0.5),
    ]
    for kernel, std in expected:  # relative error of a deviation ~ 1/√(2n) < 0.5 %
        np.testing.assert_allclose(np.std(kernel), std, rtol=0.02)
    layers = np.asarray(blocks["attn"]["q_proj"]["kernel"])
    assert not np.array_equal(layers[0], layers[1])


def test_refuses_what_does_not_fit(forward, params):
    batch = batch_of([[1, 1, 1]])
    with pytest.raises(ValueError, match="3 tokens do not fit the cache of 2 slots"):
        forward(params, batch, cache_size=2)
    with pytest.raises(ValueError, match="rows of 17 slots exceed max_length=16"):
        forward(params, batch, cache_size=17)
    with pytest.raises(ValueError, match="rows of 17 slots exceed max_length=16"):
        forward(params, batch_of([[1] * 17]))
    cache = forward(params, batch, cache_size=4).cache
    with pytest.raises(ValueError, match="cache and cache_size are both given"):
        forward(params, batch, cache=cache, cache_size=4)


def test_the_trunk_is_usable_alone(config, params):
    apply_fn = jax.jit(Transformer(config).apply)
    hidden, cache = apply_fn({"params": params["trunk"]}, batch_of(PACKED))
    assert hidden.shape == (2, 8, 16) and cache is None
