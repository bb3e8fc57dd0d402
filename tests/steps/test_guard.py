"""A loss or gradient that is not finite changes no parameter, and says so."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit
from steps.batches import KINDS, ROWS, task
from toys import tabular_policy

from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.sharding import make_mesh, mesh_parallel, place_batch, place_state
from rlhf_jax.steps import (
    KLConfig,
    PolicyConfig,
    UnpairedConfig,
    apply_loss,
    create_state,
    create_unpaired_state,
    policy_step,
    unpaired_step,
)
from rlhf_jax.steps.minibatches import minibatch_rows
from rlhf_jax.types import Metrics, TokenBatch

# (devices, how, micro-batches)
CUTS = ((1, "pmap", 1), (1, "pmap", 2), (2, "pmap", 1), (2, "pmap", 2), (2, "mesh", 1))
KEY = jax.random.key(3)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Most of the time goes there; what runs once need not run fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


BAD = 99  # a token that the tables have not


def spoilt(batch):
    """The batch with a last row that `noisy` networks choke on."""
    bad = lambda b: dataclasses.replace(b, tokens=jnp.asarray(b.tokens).at[-1].set(BAD))
    change = lambda x: bad(x) if isinstance(x, TokenBatch) else x
    return jax.tree.map(change, batch, is_leaf=lambda x: isinstance(x, TokenBatch))


def noisy(apply_fn) -> Any:
    """The network, NaN where a row has the bad token."""

    def apply(params, batch, **options):
        known = jnp.where(batch.tokens == BAD, 0, batch.tokens)
        found = apply_fn(params, dataclasses.replace(batch, tokens=known), **options)
        bad = jnp.any(batch.tokens == BAD, axis=1)[:, None, None]
        spoil = lambda x: jnp.where(bad, jnp.nan, x)
        if isinstance(found, jax.Array):
            return spoil(found)
        return found._replace(logits=spoil(found.logits))

    return apply


def started(kind, parts=1) -> tuple[Any, Any, Any]:
    """(step, state, batch) with Adam, which divides by what it remembers."""
    step, state, batch = task(kind, parts)
    tx = optax.adam(0.1)
    state = state.replace(
        apply_fn=noisy(state.apply_fn), tx=tx, opt_state=tx.init(state.params)
    )
    return step, state, batch


def learned(state):
    return state.params, state.opt_state


def on_devices(cut, kind):
    """(update, state placed, batch placed, what places a batch)."""
    count, how, parts = cut
    step, state, batch = started(kind, parts)
    if how == "mesh":
        mesh = make_mesh(jax.devices()[:count])
        place = functools.partial(place_batch, mesh=mesh)
        return mesh_parallel(step), place_state(state, mesh), batch, place
    devices = local_devices(count)
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=None)
    place = functools.partial(shard, devices=devices)
    return mapped, replicate(state, devices), batch, place


@pytest.mark.fault(14)
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_changes_nothing_and_the_next_update_is_as_without_it(kind, cut):
    update, state, batch, place = on_devices(cut, kind)
    first, metrics = update(state, place(batch))
    assert metrics.compute()["optim/skipped"] == 0
    skipped, metrics = update(first, place(spoilt(batch)))
    chex.assert_trees_all_equal(learned(skipped), learned(first))
    assert int(skipped.step) == int(first.step) + 1
    assert metrics.compute()["optim/skipped"] == 1
    # On every device the same, and the next update as if there had been no bad one.
    for leaf in jax.tree.leaves(skipped.params):
        for piece in leaf.addressable_shards:
            np.testing.assert_array_equal(piece.data, leaf)
    after, metrics = update(skipped, place(batch))
    expected, _ = update(first, place(batch))
    chex.assert_trees_all_equal(learned(after), learned(expected))
    assert metrics.compute()["optim/skipped"] == 0
    assert any(
        (new != old).any()
        for new, old in zip(
            jax.tree.leaves(after.params), jax.tree.leaves(first.params), strict=True
        )
    )


@pytest.mark.fault(14)
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_loss_that_is_not_finite_stays_visible(kind):
    step, state, batch = started(kind)
    _, metrics = quick_jit(step)(state, spoilt(batch))
    loss = {"sft": "sft/loss", "dpo": "preference/loss"}[kind]
    assert np.isnan(metrics.compute()[loss])


# What is not finite: (the loss of p, whether p moves).
LOSSES = {
    "fine": (lambda p: p**2, True),
    "loss NaN": (lambda p: p + jax.lax.stop_gradient(jnp.nan), False),
    "loss infinite": (lambda p: p + jax.lax.stop_gradient(jnp.inf), False),
    "gradient NaN": (lambda p: jnp.sqrt(0 * p) * 0, False),
    "gradient infinite": (lambda p: jnp.sqrt(p - p + jnp.where(p > 9, p, 0.0)), False),
    "norm too large for float32": (lambda p: 1e30 * p, False),
}


@pytest.mark.fault(14)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_count_each(name):
    loss, moves = LOSSES[name]
    loss_fn = lambda params, x: (
        jnp.sum(x) * loss(params["p"]),
        jnp.float32(1),
        Metrics.of({}),
    )
    state = create_state(lambda: None, {"p": jnp.float32(3)}, optax.adam(0.5))
    update = functools.partial(apply_loss, axis_name=None)
    after, metrics = jax.jit(update, static_argnums=1)(state, loss_fn, jnp.ones(1))
    assert metrics.compute()["optim/skipped"] == (not moves)
    assert (float(after.params["p"]) != 3) == moves
    assert np.isfinite(jax.tree.leaves(jax.device_get(learned(after)))).all()


@pytest.mark.fault(14)
@pytest.mark.parametrize("count", [1, 2])
def test_of_several_updates_only_those_with_the_bad_row_are_skipped(count):
    """Two epochs of four minibatches, against the others one by one."""
    config = PolicyConfig(epochs=2, minibatches=4, kl=KLConfig(coef=0.0))
    _, state, batch = started("ppo")
    bad = spoilt(batch)
    devices = local_devices(count)
    step = functools.partial(policy_step, config=config)
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=None)
    after, metrics = mapped(replicate(state, devices), shard(bad, devices), key=KEY)
    assert metrics.sums["optim/skipped"] == 2 and metrics.counts["optim/skipped"] == 8
    cuts = {"epochs": 2, "minibatches": 4, "axis_name": None}
    one = dataclasses.replace(config, epochs=1, minibatches=1)
    alone = quick_jit(functools.partial(policy_step, config=one, key=KEY))
    expected = state
    for rows in np.asarray(minibatch_rows(KEY, ROWS, ROWS, **cuts)):
        if ROWS - 1 not in rows:
            part = jax.tree.map(lambda x, rows=rows: jnp.asarray(x)[rows], batch)
            expected, _ = alone(expected, part)
    chex.assert_trees_all_close(after.params, expected.params, rtol=1e-5, atol=1e-5)
    assert int(after.step) == 8 and int(expected.step) == 6


@pytest.mark.fault(14)
def test_one_member_of_a_population_is_alone():
    step, state, batch = started("sft")
    both = jax.tree.map(lambda *x: np.stack(x), batch, spoilt(batch))
    after, metrics = jax.jit(jax.vmap(step, in_axes=(None, 0)))(state, both)
    assert metrics.sums["optim/skipped"].tolist() == [0, 1]
    moved = [(x != state.params["logits"]).any() for x in after.params["logits"]]
    assert moved == [True, False]


@pytest.mark.fault(14)
@pytest.mark.parametrize("count", [1, 2])
def test_donated_buffers(count):
    step, state, batch = started("sft")
    devices = local_devices(count)
    axes: Any = {"in_axes": (None, 0), "out_axes": None}
    update = data_parallel(step, devices, **axes, donate_state=True)
    before = jax.device_get(learned(state))
    given = replicate(state, devices)
    after, _ = update(given, shard(spoilt(batch), devices))
    assert all(x.is_deleted() for x in jax.tree.leaves(given.params))
    chex.assert_trees_all_equal(jax.device_get(learned(after)), before)


@pytest.mark.fault(14)
def test_what_a_state_remembers_besides_stays_finite():
    """The KL coefficient that adapts, and BCO's means."""
    kl = KLConfig(coef=0.1, target=6.0)
    config = PolicyConfig(kl=kl, advantage="returns", epochs=1, minibatches=1)
    _, state, batch = started("ppo")
    update = quick_jit(functools.partial(policy_step, config=config, key=KEY))
    bad = dataclasses.replace(batch, ref_logprobs=batch.ref_logprobs * jnp.nan)
    after, _ = update(state, bad)
    assert float(after.kl_coef) == float(state.kl_coef) > 0
    moved, _ = update(state, batch)
    assert float(moved.kl_coef) != float(state.kl_coef)

    _, params, rows = task("sft")
    state = create_unpaired_state(noisy(tabular_policy), params.params, optax.adam(0.1))
    options: Any = {
        "ref_params": params.params,
        "ref_apply_fn": tabular_policy,
        "config": UnpairedConfig("bco"),
    }
    update = quick_jit(functools.partial(unpaired_step, **options))
    labels = np.arange(ROWS, dtype=np.int32) % 2
    first, _ = update(state, (rows, labels))
    assert (np.asarray(first.reward_counts) > 0).all()
    after, metrics = update(first, (spoilt(rows), labels))
    assert metrics.compute()["optim/skipped"] == 1
    chex.assert_trees_all_equal(
        (after.reward_means, after.reward_counts),
        (first.reward_means, first.reward_counts),
    )


def test_bad_batches_compile_nothing_new():
    step, state, batch = started("sft")
    update = quick_jit(chex.assert_max_traces(lambda *trees: step(*trees), n=1))
    batch = jax.tree.map(jnp.asarray, batch)
    for given in (batch, spoilt(batch), batch):
        state, _ = update(state, given)


# An all-masked batch.


def unmasked(batch):
    """The batch without a token in any mask, and weights of 0."""
    nothing = lambda b: dataclasses.replace(b, mask=jnp.asarray(b.mask) & False)
    change = lambda x: nothing(x) if isinstance(x, TokenBatch) else x
    batch = jax.tree.map(change, batch, is_leaf=lambda x: isinstance(x, TokenBatch))
    if hasattr(batch, "weight"):
        batch = dataclasses.replace(batch, weight=0 * batch.weight)
    return batch


@pytest.mark.fault(17)
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_all_masked_batch_is_counted_and_has_no_gradient(kind, cut):
    update, state, batch, place = on_devices(cut, kind)
    after, metrics = update(state, place(unmasked(batch)))
    chex.assert_trees_all_equal(after.params, state.params)
    found = metrics.compute()
    assert found["optim/empty"] == 1 and found["optim/skipped"] == 0
    assert found["optim/grad_norm"] == 0
    sums = {name: float(x) for name, x in metrics.sums.items() if "loss" in name}
    assert sums == dict.fromkeys(sums, 0.0) and sums
    _, metrics = update(state, place(batch))
    assert metrics.compute()["optim/empty"] == 0
