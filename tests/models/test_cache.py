"""The ring of keys and values: what is written, replaced, rounded, and what is seen."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import batch_of, quick_jit, randomize

from rlhf_jax.errors import UserError
from rlhf_jax.models import (
    CausalLM,
    KVCache,
    TransformerConfig,
    decode_layout,
    init_params,
    lora,
    policy_apply,
    unstack_layers,
)
from rlhf_jax.models.cache import LayerCache, quantize
from rlhf_jax.models.layers import TRANSPOSED

LENGTH, CONTEXT = 24, 3
CONFIG = TransformerConfig(
    vocab_size=23,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=6,
    d_ff=24,
    max_length=LENGTH,
)
SEGMENTS = [[1] * LENGTH, [0, 0] + [1] * (LENGTH - 2)]
FAMILIES = {
    "norm of heads": {"qk_norm": "head"},
    "norm of all": {"qk_norm": "all", "post_norm": True, "pre_norm": False},
    "caps": {"attn_softcap": 2.0, "logit_softcap": 3.0, "norm": "centered_rms"},
    "window": {"window": 4, "local_layers": (1,)},
    "learned": {"positions": "learned", "norm": "layer", "gated_mlp": False},
    "parallel": {"parallel_residual": True, "qkv_bias": True, "o_bias": True},
    "experts": {"n_experts": 4, "experts_per_token": 2},
    "tied": {"tie_embeddings": True, "scale_embeddings": True, "attn_scale": 0.2},
}


@functools.cache
def params_of(config):
    """Nothing is compiled for them: noise, and scales about 1."""
    init = functools.partial(init_params, CausalLM(config))
    shapes = jax.eval_shape(init, key=jax.random.key(0))
    start = lambda path, x: jnp.full(x.shape, float(path[-1].key == "scale"))
    return randomize(jax.tree_util.tree_map_with_path(start, shapes))


def decode(config, params, batch, columns, context=CONTEXT):
    """Logits [B, T, V] by way of a cache: ``context`` columns, then one at a time."""
    apply_fn = policy_apply(config)
    cut = lambda i, j: jax.tree.map(lambda x: x[:, i:j], batch)
    first = apply_fn(params, cut(0, context), cache_size=columns)

    def step(cache, column):
        one = jax.tree.map(lambda x: x[:, None], column)
        output = apply_fn(params, one, cache=cache)
        return output.cache, output.logits[:, 0]

    rest = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), cut(context, None))
    cache, logits = jax.lax.scan(step, first.cache, rest)
    return jnp.concatenate([first.logits, jnp.swapaxes(logits, 0, 1)], axis=1), cache


@functools.cache
def _both(config, columns=LENGTH):
    """(by the cache, by the full forward) in one program, and the cache."""

    @quick_jit
    def run(params, batch):
        full = policy_apply(dataclasses.replace(config, cache_dtype=None))
        return *decode(config, params, batch, columns), full(params, batch).logits

    batch = batch_of(SEGMENTS)
    logits, cache, full = run(params_of(config), batch)
    real = np.asarray(batch.segment_ids) > 0
    return np.asarray(logits)[real], np.asarray(full)[real], cache


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decode_is_the_full_forward(family):
    """What the option changes is seen: without it the logits are others."""
    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    found, expected, cache = _both(config)
    # Relative, too: float32 rounds logits of several nats more than those near 0.
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert cache.index == LENGTH
    plain = _both(CONFIG)[1]
    assert np.abs(plain - expected).max() > 0.05


@pytest.mark.parametrize("columns", [4, 7])
def test_a_ring_holds_what_windows_see(columns):
    """24 tokens in 4 or 7 columns of layers that see 4: the ring goes round 3 times."""
    config = dataclasses.replace(CONFIG, window=4, local_layers=(0, 1))
    found, expected, cache = _both(config, columns)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert cache.index == LENGTH and cache.segment_ids.shape == (2, columns)


def test_a_ring_forgets_what_is_overwritten():
    """With 6 columns a layer without a window sees the last 6 tokens, as with one.

    A layer above sees further, through the layer below: the windows are of both.
    """
    found, full, _ = _both(CONFIG, 6)
    near = dataclasses.replace(CONFIG, window=6, local_layers=(0, 1))
    run = quick_jit(policy_apply(near))
    batch = batch_of(SEGMENTS)
    expected = run(params_of(CONFIG), batch).logits
    expected = np.asarray(expected)[np.asarray(batch.segment_ids) > 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - full).max() > 0.01


def _numbered(rows, columns, index, offset=0, cache_dtype=None):
    """A cache of one layer, distinct numbers in all of it."""
    config = dataclasses.replace(CONFIG, n_layers=1, cache_dtype=cache_dtype)
    cache = KVCache.empty(config, rows, columns)
    fill = lambda x: offset + jnp.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape)
    layers, segments = jax.tree.map(fill, (cache.layers, cache.segment_ids))
    return KVCache(layers, segments, jnp.int32(index))


@pytest.mark.parametrize("index", [5, 12, 1, 16])  # 1 and 16: across the end of 7
@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_insert_puts_rows_before_the_index(index, cache_dtype):
    """3 columns into a ring of 7, at index − 3 … index − 1 mod 7; 0 beside them.

    Row 0 goes to row 2, row 1 to row 3 and row 2 to row 0.
    """
    held = _numbered(4, 7, index, cache_dtype=cache_dtype)
    fresh = _numbered(3, 3, 3, offset=50, cache_dtype=cache_dtype)
    found = jax.jit(KVCache.insert)(held, fresh, jnp.array([2, 3, 0]))
    at = [(index - 3 + i) % 7 for i in range(3)]
    assert found.index == index

    def check(found, held, fresh, axis):
        found, held, fresh = (
            np.moveaxis(np.asarray(x), axis, 1) for x in (found, held, fresh)
        )
        for row, source in ((2, 0), (3, 1), (0, 2)):
            expected = np.zeros_like(held[row])
            expected[at] = fresh[source]
            np.testing.assert_array_equal(found[row], expected)
        np.testing.assert_array_equal(found[1], held[1])

    check(found.segment_ids, held.segment_ids, fresh.segment_ids, 1)
    names = ["keys", "values"]
    names += ["key_scales", "value_scales"] if cache_dtype == "int8" else []
    for name in names:
        a, b, c = (getattr(cache.layers[0], name) for cache in (found, held, fresh))
        check(a, b, c, 3 if name == "keys" else 2)


def test_repeat_puts_copies_side_by_side():
    cache = _numbered(2, 3, 5, cache_dtype="int8")
    found = cache.repeat(3)
    assert found.index == 5
    parts = lambda cache: jax.tree.leaves((cache.layers, cache.segment_ids))
    assert len(parts(cache)) == 5  # keys, values, a scale of each, segments
    for a, b in zip(parts(found), parts(cache), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b)[[0, 0, 0, 1, 1, 1]])


@pytest.mark.parametrize("name", ["norm of heads", "caps", "window", "learned"])
@pytest.mark.parametrize("cache_dtype", [None, "bfloat16", "int8"])
def test_shared_columns_are_those_of_copies(name, cache_dtype):
    """Two prompts, the first behind padding, 3 rows after each, 4 tokens a row."""
    config = dataclasses.replace(CONFIG, **FAMILIES[name], cache_dtype=cache_dtype)
    apply_fn, params = policy_apply(config), params_of(config)
    asked = batch_of([[0, 1, 1, 1, 1], [1] * 5])
    rows = batch_of([[1] * 4] * 6)
    later = rows.positions + jnp.array([[4]] * 3 + [[5]] * 3)
    rows = dataclasses.replace(rows, positions=later)
    token = lambda t: jax.tree.map(lambda x: x[:, t : t + 1], rows)

    @quick_jit
    def run():
        def read(grow):
            cache, logits = grow(apply_fn(params, asked, cache_size=5).cache), []
            for t in range(4):
                output = apply_fn(params, token(t), cache=cache)
                cache = output.cache
                logits.append(output.logits)
                if t == 1:  # the third token has no room yet
                    cache = cache.widen(2)
            return jnp.concatenate(logits, axis=1)

        shared = read(lambda cache: cache.share(3, 2))
        return shared, read(lambda cache: cache.repeat(3).widen(2))

    found, expected = run()
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_shared_columns_count_against_the_context():
    """16 + 8 columns are the 24 of the context; with one more a row is refused."""
    batch = batch_of([[1] * 16])
    apply_fn, params = policy_apply(CONFIG), params_of(CONFIG)
    token = jax.tree.map(lambda x: x[[0, 0], :1], batch)

    def shape(columns):
        def read():
            cache = apply_fn(params, batch, cache_size=16).cache.share(2, columns)
            return apply_fn(params, token, cache=cache).logits

        return jax.eval_shape(read).shape

    assert shape(8) == (2, 1, 23)
    with pytest.raises(UserError, match="25 slots exceed max_length=24"):
        shape(9)


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_quantize_is_within_half_a_step(size):
    """|x − q·s| ≤ s/2, and a factor 1 + 10⁻⁶ for float32's own rounding."""
    x = size * jax.random.normal(jax.random.key(0), (200, 32))
    q, scale = jax.jit(quantize)(x)
    assert q.dtype == jnp.int8 and scale.dtype == jnp.float32
    q, s, x = np.asarray(q, float), np.asarray(scale, float), np.asarray(x, float)
    np.testing.assert_allclose(s, np.abs(x).max(axis=1) / 127, rtol=1e-6)
    error = np.abs(x - q * s[:, None]) / s[:, None]
    assert 0.45 < error.max() <= 0.5 + 127e-6
    assert (np.abs(q).max(axis=1) == 127).all()  # the whole range is used


def test_quantize_keeps_zeros():
    q, scale = quantize(jnp.zeros((2, 4)))
    assert not np.asarray(q).any() and scale.tolist() == [0.0, 0.0]
    q, scale = quantize(jnp.array([0.0, -2.54, 0.0]))
    assert q.tolist() == [0, -127, 0] and scale == pytest.approx(0.02)


def _error(cache_dtype):
    """The largest difference of a log-prob from that of the full forward."""
    config = dataclasses.replace(CONFIG, cache_dtype=cache_dtype)
    found, expected, cache = _both(config)
    assert cache.layers[0].keys.dtype == cache_dtype
    found, expected = jax.nn.log_softmax(found), jax.nn.log_softmax(expected)
    return float(jnp.abs(found - expected).max())


@pytest.mark.parametrize("cache_dtype, seen", [("bfloat16", 0.08), ("int8", 0.16)])
def test_rounded_caches_stay_near(cache_dtype, seen):
    """Measured: log-probs of all tokens differ by up to 0.08 nats with bfloat16 and
    0.16 with int8; the bounds are half and twice that.
    """
    assert seen / 2 < _error(cache_dtype) < 2 * seen
    assert _error("float32") < 1e-5


def test_int8_is_a_quarter_of_float32():
    """2 rows · 2 heads · 24 columns · 6 numbers, keys and values; 4 bytes a scale."""
    sizes = {}
    for cache_dtype in ("float32", "int8"):
        config = dataclasses.replace(CONFIG, cache_dtype=cache_dtype)
        layer = LayerCache.empty(config, 2, 24)
        sizes[cache_dtype] = sum(x.nbytes for x in jax.tree.leaves(layer))
    assert sizes == {"float32": 2 * 576 * 4, "int8": 2 * (576 + 96 * 4)}


def test_unstacked_layers_decode_the_same():
    batch = batch_of(SEGMENTS)
    params = params_of(CONFIG)
    apart = unstack_layers(params)
    assert [b["attn"]["q_proj"]["kernel"].shape for b in apart["trunk"]["blocks"]] == [
        (16, 24),
        (16, 24),
    ]
    run = quick_jit(lambda params: decode(CONFIG, params, batch, LENGTH))
    chex.assert_trees_all_close(run(apart), run(params), atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [2, 20])  # 20 rows of 8 tokens: more than FEW_ROWS
def test_decode_layout_decodes_the_same(rows, tied):
    """Transposed weights, with adapters: for few rows and for a prefill of many."""
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    segments = [[1] * 12] * rows
    adapters = lora.LoraConfig(rank=2, targets=("q_proj", "down_proj"))
    base = params_of(config)
    trained = randomize(lora.init(base, adapters, key=jax.random.key(3)))
    params = lora.apply(base, trained, adapters)
    laid = decode_layout(params)
    kernels = {name for name in paths(laid) if "kernel" in name}
    assert kernels and all(TRANSPOSED in name for name in kernels)
    batch, apply_fn = batch_of(segments), policy_apply(config)
    part = lambda i, j: jax.tree.map(lambda x: x[:, i:j], batch)

    @quick_jit
    def run(params):
        read = apply_fn(params, part(0, 8), cache_size=12)
        return read.logits, apply_fn(params, part(8, 9), cache=read.cache).logits

    # The random adapters make logits of several nats, which 1e-5 is too close for.
    chex.assert_trees_all_close(run(laid), run(params), rtol=1e-5, atol=3e-5)


def paths(params) -> list[str]:
    return [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
