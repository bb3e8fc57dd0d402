"""Fused log-probs: the numbers and gradients of the plain ones, without the logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.ops import fused_token_logprobs, token_entropy, token_logprobs
from rlhf_jax.sharding import make_mesh, on_mesh

ROWS, LENGTH, WIDTH, VOCAB = 3, 7, 8, 37


def inputs(dtype=jnp.float32):
    key = jax.random.split(jax.random.key(0), 3)
    hidden = 2 * jax.random.normal(key[0], (ROWS, LENGTH, WIDTH), dtype)
    unembed = jax.random.normal(key[1], (WIDTH, VOCAB), dtype)
    return hidden, unembed, jax.random.randint(key[2], (ROWS, LENGTH), 0, VOCAB)


def plain(hidden, unembed, tokens, *, temperature=1.0, softcap=None):
    logits = jnp.einsum(
        "BTD,DV->BTV", hidden, unembed, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    options = {"temperature": temperature}
    logprobs = token_logprobs(logits, tokens, **options)
    return logprobs, token_entropy(logits, **options)


def gradients(f, tokens, hidden, unembed):
    """Of one number that every log-prob and entropy weighs differently in."""
    weights = jax.random.normal(jax.random.key(7), (2, ROWS, LENGTH))

    def total(hidden, unembed):
        both = f(hidden, unembed, tokens)
        return sum(jnp.vdot(w, x) for w, x in zip(weights, both, strict=True))

    return jax.grad(total, argnums=(0, 1))(hidden, unembed)


@pytest.mark.parametrize("parts", [{"tensor": 4}, {"fsdp": 2, "tensor": 2}])
def test_a_vocabulary_in_parts_on_a_mesh(parts):
    """Slices of a weight that devices share by columns, the last one narrower."""
    hidden, unembed, tokens = inputs()
    unembed = unembed[:, :36]  # which four devices can share
    mesh = make_mesh(jax.devices()[:4], **parts)
    held = jax.device_put(unembed, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    fused = functools.partial(fused_token_logprobs, chunk_size=8)
    reached = jax.jit(on_mesh(functools.partial(gradients, fused), mesh))
    found = reached(tokens, hidden, held)
    expected = gradients(plain, tokens, hidden, unembed)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 36, 37, 100])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"softcap": 3.0, "temperature": 1.3}]
)
def test_numbers_and_gradients_are_the_plain_ones(options, chunk_size):
    hidden, unembed, tokens = inputs()
    fused = functools.partial(fused_token_logprobs, chunk_size=chunk_size, **options)
    reference = functools.partial(plain, **options)
    for found, expected in zip(
        fused(hidden, unembed, tokens), reference(hidden, unembed, tokens), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = gradients(fused, tokens, hidden, unembed)
    expected = gradients(reference, tokens, hidden, unembed)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_products_of_bfloat16_are_summed_in_float32():
    hidden, unembed, tokens = inputs(jnp.bfloat16)
    fused = functools.partial(fused_token_logprobs, chunk_size=12)
    for found, expected in zip(
        fused(hidden, unembed, tokens), plain(hidden, unembed, tokens), strict=True
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = gradients(fused, tokens, hidden, unembed)
    exact = (x.astype(jnp.float32) for x in (hidden, unembed))
    expected = gradients(plain, tokens, *exact)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=0.05, atol=0.1)


def test_large_logits_cost_no_precision():
    """Entropies of some 1e-3 nats beside logits of hundreds."""
    hidden, unembed, tokens = inputs()
    _, found = fused_token_logprobs(100 * hidden, unembed, tokens, chunk_size=5)
    logits = np.einsum("btd,dv->btv", 100 * hidden, unembed, dtype=np.float64)
    z = logits - logits.max(axis=-1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    expected = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
    np.testing.assert_allclose(found[:, 1:], expected[:, :-1], atol=1e-3)


def test_rows_without_a_part_may_be_anything():
    hidden, unembed, tokens = inputs()
    used = jnp.arange(ROWS)[:, None, None] != 1

    def loss(hidden, unembed):
        logprobs, _ = fused_token_logprobs(hidden, unembed, tokens, chunk_size=12)
        return jnp.sum(jnp.where(used[..., 0], logprobs, 0.0))

    grad = jax.grad(loss, argnums=(0, 1))
    expected = grad(hidden, unembed)
    found = grad(jnp.where(used, hidden, jnp.nan), unembed)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not found[0][1].any()


def test_ids_outside_the_vocabulary_get_nan():
    hidden, unembed, _ = inputs()
    tokens = jnp.array([[0, -1, VOCAB, VOCAB - 1, 0, 1, 2]] * ROWS)
    logprobs, _ = fused_token_logprobs(hidden, unembed, tokens, chunk_size=12)
    assert jnp.isnan(logprobs[0]).tolist() == [False, True, True] + 4 * [False]


def test_what_is_refused():
    with pytest.raises(ValueError, match="chunk_size = 0"):
        fused_token_logprobs(*inputs(), chunk_size=0)
    with pytest.raises(ValueError, match="0 < temperature"):
        fused_token_logprobs(*inputs(), temperature=0.0)


def test_memory_at_a_large_vocabulary():
    """152,064 ids, 2,048 tokens: the logits alone are 1.2 GB; the plan is a third."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    hidden, unembed = shape((1, 2_048, 64)), shape((64, 152_064))
    tokens = jax.ShapeDtypeStruct((1, 2_048), jnp.int32)

    def planned(f):
        loss = lambda h, w, x: -jnp.mean(f(h, w, x)[0])
        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        compiled = step.lower(hidden, unembed, tokens).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes, str(compiled.as_text())

    fused, text = planned(fused_token_logprobs)
    whole, whole_text = planned(plain)
    of_all_ids = re.compile(r"f32\[(1,)?20\d\d,152064\]")
    assert of_all_ids.search(whole_text) and not of_all_ids.search(text)
    assert fused < whole / 3
