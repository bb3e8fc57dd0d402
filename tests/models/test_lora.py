"""Adapters against merged weights: the same network, and no copy of its base."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import batch_of, quick_jit, randomize

from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, lora, policy_apply
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.types import Params, join_params

# Compiles twice as fast; the programs run for milliseconds.
LORA = LoraConfig(rank=3, alpha=12.0)
SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": 6,
    "d_ff": 24,
    "max_length": 16,
}
GPT2 = TransformerConfig(
    **SIZES,
    positions="learned",
    norm="layer",
    gated_mlp=False,
    activation="gelu_tanh",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    tie_embeddings=True,
)
GPT2 = dataclasses.replace(GPT2, n_kv_heads=4)
GEMMA = TransformerConfig(
    **SIZES,
    norm="centered_rms",
    post_norm=True,
    qk_norm="head",
    activation="gelu_tanh",
    scale_embeddings=True,
    attn_softcap=5.0,
    logit_softcap=20.0,
    window=3,
    local_layers=(0,),
)
MIXTURE = TransformerConfig(**SIZES, n_experts=4, experts_per_token=2)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def base_of(config: TransformerConfig) -> Params:
    make = quick_jit(functools.partial(init_params, CausalLM(config)))
    return randomize(make(key=jax.random.key(1)))


def make_adapters(base: Params, config: LoraConfig = LORA, seed: int = 0) -> Params:
    key = jax.random.key(seed)
    return quick_jit(functools.partial(lora.init, config=config))(base, key=key)


def merge(base: Params, adapters: Params, config: LoraConfig = LORA) -> Params:
    return quick_jit(functools.partial(lora.merge, config=config))(base, adapters)


def trained(base: Params, config: LoraConfig = LORA) -> Params:
    """Adapters of which neither A nor B is 0."""
    return randomize(make_adapters(base, config, seed=2))


def named(tree: Params) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def adapters(params):
    return trained(params)


def test_new_adapters_change_nothing(params, forward):
    new = make_adapters(params)
    assert all((x == 0).all() for n, x in named(new).items() if n.endswith("lora_b"))
    batch = batch_of([[1] * 8, [1] * 8])
    found = forward(lora.apply(params, new, LORA), batch).logits
    chex.assert_trees_all_close(found, forward(params, batch).logits, atol=1e-6, rtol=0)


def test_new_adapters_are_uniform_and_of_their_inputs_width():
    # √in·A is uniform on ±1: its variance is 1/3 (within 2 % at 4 σ of 30,000 draws).
    base = {"q_proj": {"kernel": jnp.ones((3, 100, 5))}}
    new = lora.init(base, LoraConfig(rank=100), key=jax.random.key(0))["q_proj"]
    a = 10 * np.asarray(new["lora_a"])
    assert a.shape == (3, 100, 100) and new["lora_b"].shape == (3, 100, 5)
    assert a.dtype == new["lora_b"].dtype == np.float32
    assert 0.999 < np.abs(a).max() <= 1
    np.testing.assert_allclose(a.var(), 1 / 3, rtol=0.02)
    assert len({layer.tobytes() for layer in a}) == 3  # layers differ


def test_nothing_of_the_base_is_copied(params, adapters):
    whole = named(lora.apply(params, adapters, LORA))
    for tree in (params, adapters):
        for name, leaf in named(tree).items():
            assert whole.pop(name) is leaf, name
    assert {name.split("/")[-1] for name in whole} == {"lora_scale"}


def test_applied_is_merged(params, adapters, forward):
    batch = batch_of([[1] * 8, [0, 0, 1, 1, 1, 2, 2, 2]])
    applied = forward(lora.apply(params, adapters, LORA), batch).logits
    merged = merge(params, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    real = batch.segment_ids > 0
    chex.assert_trees_all_close(
        applied[real], forward(merged, batch).logits[real], atol=1e-5, rtol=1e-5
    )
    change = np.abs(applied - forward(params, batch).logits)
    assert change.max() > 0.5  # the adapters are no small part of it


def test_applied_is_merged_in_bfloat16(config, params, adapters, forward):
    # Three networks of the same weights, each rounded in its own places: the distance
    # of either from float32 is that of bfloat16 (8 bits) over a few dozen roundings.
    half = dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    exact_base = jax.tree.map(lambda x: x.astype(jnp.float32), base)
    batch = batch_of([[1] * 8, [1] * 8])
    run = quick_jit(policy_apply(half))
    exact = forward(merge(exact_base, adapters), batch).logits
    merged = merge(base, adapters)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    scale = np.abs(exact).max()
    for whole in (lora.apply(base, adapters, LORA), merged):
        error = np.abs(run(whole, batch).logits - exact).max()
        assert error < 10 * 2**-8 * scale


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2.0), (2, 6.0), (4, 2.0)])
def test_the_scale_is_alpha_over_rank(rank, alpha):
    config = LoraConfig(rank, alpha)
    base = {"up_proj": {"kernel": jnp.ones((2, 5, 4))}}
    a, b = jnp.full((2, 5, rank), 2.0), jnp.full((2, rank, 4), 3.0)
    adapters = {"up_proj": {"lora_a": a, "lora_b": b}}
    # α/r times r products of 2·3.
    merged = lora.merge(base, adapters, config)["up_proj"]["kernel"]
    np.testing.assert_array_equal(merged, np.full((2, 5, 4), 1 + 6 * alpha))
    scale = lora.apply(base, adapters, config)["up_proj"]["lora_scale"]
    np.testing.assert_array_equal(scale, np.full(2, alpha / rank, np.float32))


def test_gradients_are_those_of_the_merged_weights(config, params, adapters):
    # L(W + s·A·B): dA = s·dW·Bᵀ, dB = s·Aᵀ·dW.
    batch = batch_of([[1] * 8, [1] * 8])
    apply_fn, scale = policy_apply(config), 12.0 / 3
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 23)), jnp.float32)
    loss = lambda whole: jnp.mean(weight * apply_fn(whole, batch).logits)
    found = quick_jit(jax.grad(lambda p: loss(lora.apply(params, p, LORA))))(adapters)
    merged = quick_jit(jax.grad(loss))(merge(params, adapters))
    whole, leaves = named(merged), named(adapters)
    assert len(leaves) == 2 * 7
    for name, gradient in named(found).items():
        path, leaf = name.rsplit("/", 1)
        kernel = whole[f"{path}/kernel"]
        if leaf == "lora_a":
            b = leaves[f"{path}/lora_b"]
            expected = scale * jnp.einsum("lio,lro->lir", kernel, b)
        else:
            a = leaves[f"{path}/lora_a"]
            expected = scale * jnp.einsum("lir,lio->lro", a, kernel)
        assert np.abs(expected).max() > 1e-3, name
        np.testing.assert_allclose(
            gradient, expected, atol=1e-5, rtol=1e-5, err_msg=name
        )


def test_cached_decode_is_the_full_forward(params, adapters, forward):
    whole = lora.apply(params, adapters, LORA)
    batch = batch_of([[1, 1, 1, 2, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1]])
    columns = lambda i, j: jax.tree.map(lambda x: x[:, i:j], batch)
    output = forward(whole, columns(0, 5), cache_size=9)
    parts = [output.logits]
    for t in range(5, 8):
        output = forward(whole, columns(t, t + 1), cache=output.cache)
        parts.append(output.logits)
    real = batch.segment_ids > 0
    chex.assert_trees_all_close(
        jnp.concatenate(parts, axis=1)[real],
        forward(whole, batch).logits[real],
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "config", [GPT2, GEMMA, MIXTURE], ids=["gpt2", "gemma", "mixture"]
)
def test_every_adapter_of_every_architecture_has_its_part(config):
    base, batch = base_of(config), batch_of([[1] * 8])
    adapters, apply_fn = trained(base), policy_apply(config)

    def total(adapters):
        logits = apply_fn(lora.apply(base, adapters, LORA), batch).logits
        return jnp.sum(logits**2), logits

    gradients, applied = quick_jit(jax.grad(total, has_aux=True))(adapters)
    dense = ATTENTION + (("up_proj", "down_proj") if not config.n_experts else ())
    dense += ("gate_proj",) if config.gated_mlp and not config.n_experts else ()
    assert {name.split("/")[-2] for name in named(gradients)} == set(dense)
    for name, gradient in named(gradients).items():
        for layer in np.asarray(gradient):
            assert np.abs(layer).max() > 1e-3, name
    run = quick_jit(apply_fn)
    merged = run(merge(base, adapters), batch).logits
    chex.assert_trees_all_close(applied, merged, atol=1e-5, rtol=1e-5)
    assert np.abs(applied - run(base, batch).logits).max() > 0.1


def test_targets_choose_the_projections(params):
    config = LoraConfig(rank=2, targets=("q_proj", "down_proj"))
    adapters = trained(params, config)
    assert {name.rsplit("/", 1)[0] for name in named(adapters)} == {
        "trunk/blocks/attn/q_proj",
        "trunk/blocks/mlp/down_proj",
    }
    merged, before = named(merge(params, adapters, config)), named(params)
    changed = {n for n in before if not np.array_equal(before[n], merged[n])}
    assert changed == {
        "trunk/blocks/attn/q_proj/kernel",
        "trunk/blocks/mlp/down_proj/kernel",
    }


def test_experts_and_routers_take_no_adapters():
    base = base_of(MIXTURE)
    new = make_adapters(base)
    assert list(new["trunk"]["blocks"]) == ["attn"]
    assert set(new["trunk"]["blocks"]["attn"]) == set(ATTENTION)
    config = LoraConfig(targets=("q_proj", "up_proj"))
    for refused in (
        lambda: lora.init(base, config, key=jax.random.key(0)),
        lambda: lora.freeze(base, config),
    ):
        with pytest.raises(UserError, match=r"lora\.targets: .*mlp/up_proj.*mixture"):
            refused()
    with pytest.raises(UserError, match=r"lora\.targets=router: expected"):
        LoraConfig(targets=("router",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"lora\.rank=0"),
        ({"alpha": 0.0}, r"lora\.alpha=0\.0"),
        ({"alpha": float("inf")}, r"lora\.alpha=inf"),
        ({"alpha": float("nan")}, r"lora\.alpha=nan"),
        ({"targets": ("q_proj", "embed", "wq")}, r"lora\.targets=embed, wq: .*q_p"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**options)


@pytest.mark.parametrize("targets", [("gate_proj",), ("q_proj", "lm_head"), ()])
def test_nothing_to_adapt_is_refused(targets):
    base = {"mlp": {"up_proj": {"kernel": jnp.ones((1, 2, 2))}}}
    with pytest.raises(UserError, match=r"lora\.targets: .*not in these parameters"):
        lora.init(base, LoraConfig(targets=targets), key=jax.random.key(0))


def test_a_key_decides_the_adapters(params):
    make = lambda seed: named(make_adapters(params, seed=seed))
    first, again, other = make(0), make(0), make(1)
    chex.assert_trees_all_equal(first, again)
    drawn = {n: x for n, x in first.items() if n.endswith("lora_a")}
    assert len(drawn) == 7
    for name, a in drawn.items():
        assert not np.array_equal(a, other[name]), name
    # Of one shape, and yet not the same: q, k, v, gate and up all read the model width.
    alike = [a for a in drawn.values() if a.shape == (2, 16, 3)]
    assert len(alike) == 5
    assert len({np.asarray(a).tobytes() for a in alike}) == 5


def test_a_leaf_is_frozen_or_trained():
    frozen = {"trunk": {"w": jnp.ones(2)}}
    for twice in ({"trunk": {"w": jnp.ones(2)}}, {"trunk": jnp.ones(2)}):
        with pytest.raises(ValueError, match="both frozen and trained"):
            join_params(frozen, twice)
    with pytest.raises(ValueError, match="kernel is both frozen and trained"):
        base = {"q_proj": {"kernel": jnp.ones((1, 2, 2))}}
        lora.apply(base, base, LORA)
    assert join_params(None, frozen) is frozen
    assert list(frozen["trunk"]) == ["w"]


def test_the_output_projection_has_no_layers(params, forward):
    config = LoraConfig(rank=2, targets=("lm_head",))
    adapters = randomize(lora.init(params, config, key=jax.random.key(0)))
    shapes = {name: leaf.shape for name, leaf in named(adapters).items()}
    assert shapes == {"lm_head/lora_a": (16, 2), "lm_head/lora_b": (2, 23)}
    batch = batch_of([[1] * 8])
    applied = forward(lora.apply(params, adapters, config), batch).logits
    merged = forward(lora.merge(params, adapters, config), batch).logits
    chex.assert_trees_all_close(applied, merged, atol=1e-5, rtol=1e-5)
    assert np.abs(applied - forward(params, batch).logits).max() > 0.5
