"""Hidden states of a few columns: those of all, and what is not computed for them."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import batch_of, quick_jit, randomize

from rlhf_jax.models import (
    RopeConfig,
    ScoreModel,
    Transformer,
    TransformerConfig,
    init_params,
    lora,
    score_apply,
)
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.models.masks import attention_mask, column_mask
from rlhf_jax.rows import take_columns
from rlhf_jax.sharding import make_mesh, on_mesh, place_state

PACKED = [[1, 1, 1, 2, 2, 2, 2, 0], [0, 0, 1, 1, 1, 2, 2, 2], [0] * 8, [1] * 8]
# Ends of sequences, a column twice, a token amid its sequence; and padding.
AT = jnp.array([[2, 6], [4, 7], [7, 7], [7, 5]])
REAL = jnp.array([True, True, False, True])
MODEL = TransformerConfig(
    vocab_size=23, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=6, d_ff=24,
    max_length=16,
)  # fmt: skip
LOOP, UNROLLED = {"scan_unroll": 1}, {"scan_unroll": 2}
VARIANTS: dict[str, Any] = {
    "partly unrolled": {"n_layers": 3, "scan_unroll": 2},
    "one layer": {"n_layers": 1},
    "window in the last layer; norms around": {
        **LOOP,
        "local_layers": (1,),
        "window": 2,
        "post_norm": True,
        "qk_norm": "head",
        "norm": "centered_rms",
        "attn_softcap": 5.0,
    },
    "window in the first layer; norms after": {
        **UNROLLED,
        "local_layers": (0,),
        "window": 2,
        "rope": RopeConfig(local_theta=100.0),
        "pre_norm": False,
        "post_norm": True,
        "qk_norm": "all",
    },
    "windows only; remat": {
        **LOOP,
        "local_layers": (0, 1),
        "window": 3,
        "remat": True,
    },
    "parallel; learned positions": {
        **LOOP,
        "parallel_residual": True,
        "norm": "layer",
        "positions": "learned",
        "gated_mlp": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
    },
    "experts; dynamic rope": {
        **UNROLLED,
        "n_experts": 4,
        "experts_per_token": 2,
        "rope": RopeConfig(kind="dynamic", factor=2.0, original_length=2),
    },
}


def change(**options) -> TransformerConfig:
    return dataclasses.replace(MODEL, **options)


def few(config, params, batch):
    return score_apply(config)(params, batch, at=AT)


def whole(config, params, batch):
    return take_columns(score_apply(config)(params, batch), AT)


def numbers_and_gradients(scores, config, batch, params):
    """At the sequences' tokens; what padding gets is finite and means nothing."""

    def loss(params):
        real = jnp.where(REAL[:, None, None], scores(config, params, batch), 0.0)
        return jnp.sum(jnp.square(real)), real

    return quick_jit(jax.grad(loss, has_aux=True))(params)


def check(config, params=None, rtol=1e-5, atol=1e-6):
    batch = batch_of(PACKED)
    params = random_params(config) if params is None else params
    found, expected = (
        numbers_and_gradients(f, config, batch, params) for f in (few, whole)
    )
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=atol)


def random_params(config):
    """Drawn by NumPy: nothing to compile."""
    make = functools.partial(init_params, ScoreModel(config))
    shapes = jax.eval_shape(make, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_gradients_are_those_of_the_whole(variant):
    check(change(**VARIANTS[variant]))


def test_adapters_of_the_last_layer_are_its_own():
    own, base = LoraConfig(rank=2, alpha=1.0), random_params(MODEL)
    adapters = randomize(lora.init(base, own, key=jax.random.key(1)))
    check(MODEL, lora.apply(base, adapters, own))


def test_bfloat16_stays_near():
    config, batch = change(dtype="bfloat16"), batch_of(PACKED)
    found, expected = (
        numbers_and_gradients(f, config, batch, random_params(config))
        for f in (few, whole)
    )
    error = optax.tree.norm(optax.tree.sub(found, expected))
    assert error < 0.02 * optax.tree.norm(expected)


@pytest.mark.parametrize("window", [None, 2])
def test_masks_are_rows_of_the_whole_mask(window):
    segments = batch_of(PACKED).segment_ids
    square = attention_mask(segments, segments, jnp.int32(0), window)
    expected = take_columns(square, AT)
    chex.assert_trees_all_equal(column_mask(segments, AT, window), expected)


# Whole rows on each device, rows in two parts; and in parts that columns could not be.
@pytest.mark.parametrize(
    "tokens, parts", [(8, {}), (8, {"sequence": 2}), (7, {"sequence": 2})]
)
def test_on_a_mesh(tokens, parts):
    mesh = make_mesh(jax.devices()[:4], **parts)
    batch = jax.tree.map(lambda x: x[:, :tokens], batch_of(PACKED))
    at, params = jnp.minimum(AT, tokens - 1), random_params(MODEL)
    run = lambda params, batch: score_apply(MODEL)(params, batch, at=at)
    placed = place_state(params, mesh), batch
    found = quick_jit(on_mesh(run, mesh))(*placed)
    expected = take_columns(quick_jit(score_apply(MODEL))(params, batch), at)
    chex.assert_trees_all_close(found[REAL], expected[REAL], atol=2e-6)


def test_a_cache_may_be_filled_beside(config, params):
    batch, trunk = batch_of(PACKED), {"params": params["trunk"]}
    run = quick_jit(Transformer(config).apply, static_argnames="cache_size")
    found, cache = run(trunk, batch, cache_size=9, at=AT)
    hidden, expected = run(trunk, batch, cache_size=9)
    chex.assert_trees_all_close(found, take_columns(hidden, AT), atol=1e-6)
    chex.assert_trees_all_close(cache, expected)


def kept(config, params, batch, at):
    """Shapes of what a backward pass reads."""
    scores = lambda params: score_apply(config)(params, batch, at=at)
    pull = jax.eval_shape(lambda params: jax.vjp(scores, params)[1], params)
    return [x.shape for x in jax.tree.leaves(pull)]


@pytest.mark.parametrize("unroll", [1, 2])
def test_nothing_more_is_kept_than_for_whole_rows(unroll):
    config = change(d_ff=40, scan_unroll=unroll)
    params, batch = random_params(config), batch_of([[1] * 16] * 4)
    found = kept(config, params, batch, AT)
    assert sum(map(math.prod, found)) < sum(
        map(math.prod, kept(config, params, batch, None))
    )
    # Of the last layer's MLP, gate and up of the tokens that ask.
    layers = (2,) if unroll == 1 else ()
    assert found.count((*layers, AT.size, 40)) == 2
    # Neither weights nor masks once more for each layer.
    assert found.count((2, 16, 40)) == (2 if unroll == 1 else 0)
    assert not [s for s in found if s[:1] == (2,) and s[-2:] == (16, 16)]
