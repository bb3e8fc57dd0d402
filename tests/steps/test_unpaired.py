"""KTO, BCO and APO-zero of single completions: numbers, baselines, devices."""

import dataclasses
import functools
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit
from steps.batches import ROWS, assert_same, network, rows
from toys import tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.ops.unpaired_loss import UnpairedKind
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.sharding import make_mesh, mesh_parallel, place_batch, place_state
from rlhf_jax.steps import UnpairedConfig, create_unpaired_state, unpaired_step
from rlhf_jax.steps.unpaired import mismatched
from rlhf_jax.types import ModelOutput

KINDS = get_args(UnpairedKind)
every_kind = pytest.mark.parametrize("kind", KINDS)
MEANS, COUNTS = [-0.4, 1.0], [3.0, 5.0]  # of bad and good, as BCO's state has them
LAMBDAS = {"desirable_weight": 1.5, "undesirable_weight": 0.5}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Most of the time goes there; what runs once need not run fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def tables():
    """(parameters, reference), of seeds with which z is above 0."""
    (_, params), (_, reference) = (
        network("policy", table=True, seed=seed) for seed in (2, 1)
    )
    return params, reference


def labelled():
    """The first quarter, a device's part, has no label; the last row has none."""
    labels = np.random.default_rng(5).integers(0, 2, ROWS).astype(np.int32)
    labels[: ROWS // 4] = labels[-1] = -1
    return rows(), labels


def started(params=None):
    state = create_unpaired_state(
        tabular_policy, tables()[0] if params is None else params, optax.sgd(1.0)
    )
    means, counts = jnp.asarray(MEANS), jnp.asarray(COUNTS)
    return state.replace(reward_means=means, reward_counts=counts)


def step_of(kind, parts=1):
    config = UnpairedConfig(kind, beta=0.5, micro_batches=parts, **LAMBDAS)
    return functools.partial(
        unpaired_step,
        ref_params=tables()[1],
        ref_apply_fn=tabular_policy,
        config=config,
    )


@functools.cache
def plain(kind):
    return updated(kind)


def updated(kind, batch=None):
    after, metrics = quick_jit(step_of(kind))(started(), batch or labelled())
    return after, metrics.compute()


def log_ratio(prompt, completion, params, reference):
    """log π(y | x) − log π_ref(y | x), float64, token by token."""
    total, last = 0.0, prompt[-1]
    for token in completion:
        for table, sign in ((params, 1), (reference, -1)):
            z = np.asarray(table["logits"], np.float64)[last]
            total += sign * (z[token] - np.log(np.sum(np.exp(z))))
        last = token
    return total


def texts(batch):
    """[(prompt, completion)] of right-padded rows, cut to their width in pairs."""
    found = []
    for tokens, real, mask in zip(
        batch.tokens, batch.segment_ids > 0, batch.mask, strict=True
    ):
        found.append((tokens[real & ~mask].tolist(), tokens[mask].tolist()))
    return found


def oracle(kind, params, reference, baseline=None):
    """(metrics, baseline): one completion at a time; a baseline given is held fixed."""
    beta, (batch, labels) = 0.5, labelled()
    known = [i for i in range(ROWS) if labels[i] >= 0]
    both = texts(batch)
    if baseline is None and kind == "kto":
        others = [both[j][1] for j in known[1:] + known[:1]]
        width = batch.tokens.shape[1]
        baseline = np.mean(
            [
                log_ratio(x, y[: width - len(x)], params, reference)
                for (x, _), y in zip([both[i] for i in known], others, strict=True)
            ]
        )
    elif baseline is None:
        baseline = np.mean(MEANS) if kind == "bco" else 0.0
    border = beta * max(0, baseline) if kind == "kto" else baseline
    found = []
    for i in known:
        (prompt, completion), good = both[i], labels[i] == 1
        reward = beta * log_ratio(prompt, completion, params, reference)
        lead = (reward - border) * (1 if good else -1)
        miss = 1 / (1 + np.exp(lead))
        loss = -np.log(1 - miss) if kind == "bco" else miss
        found.append((loss * (1.5 if good else 0.5), (1 + np.sign(lead)) / 2, reward))
    losses, right, reward = np.array(found).T
    good = labels[known] == 1
    metrics = {
        "preference/loss": losses.mean(),
        "preference/accuracy": right.mean(),
        "preference/good_reward": reward[good].mean(),
        "preference/bad_reward": reward[~good].mean(),
    }
    if kind != "apo_zero":
        metrics["preference/baseline"] = baseline
    return metrics, baseline


@every_kind
def test_metrics_equal_the_oracle(kind):
    _, found = plain(kind)
    expected, baseline = oracle(kind, *tables())
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert kind != "kto" or baseline > 0.1  # else it would be apo_zero


@every_kind
def test_gradient_equals_finite_differences_with_the_baseline_held(kind):
    params, reference = tables()
    after, _ = plain(kind)
    _, baseline = oracle(kind, params, reference)
    gradient = np.asarray(params["logits"]) - np.asarray(after.params["logits"])
    entries = np.argwhere(np.abs(gradient) > np.abs(gradient).max() / 4)
    assert len(entries) > 3
    for index in map(tuple, entries[:8]):
        losses = []
        for h in (1e-5, -1e-5):
            moved = np.array(params["logits"], np.float64)
            moved[index] += h
            metrics, _ = oracle(kind, {"logits": moved}, reference, baseline)
            losses.append(metrics["preference/loss"])
        numeric = (losses[0] - losses[1]) / 2e-5
        assert gradient[index] == pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize("cut", [(2, "pmap", 2), (4, "mesh", 2)], ids=str)
@every_kind
def test_cuts_change_nothing(kind, cut):
    """A device without a label, and neighbours on another one: the same baseline."""
    count, how, parts = cut
    state, batch, step = started(), labelled(), step_of(kind, parts)
    if how == "mesh":
        mesh = make_mesh(jax.devices()[:count])
        after, metrics = mesh_parallel(step)(
            place_state(state, mesh), place_batch(batch, mesh)
        )
    else:
        devices = local_devices(count)
        mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=None)
        after, metrics = mapped(replicate(state, devices), shard(batch, devices))
    expected, numbers = plain(kind)
    assert_same((after.params, metrics.compute()), (expected.params, numbers))
    for name in ("reward_means", "reward_counts"):
        found = getattr(after, name), getattr(expected, name)
        np.testing.assert_allclose(*found, rtol=1e-5)


def test_bco_remembers_all_rewards_and_the_others_nothing():
    """δ is that of the updates before; then the batch's rewards join the means."""
    after, found = plain("bco")
    _, labels = labelled()
    for index, name in ((0, "bad"), (1, "good")):
        count = np.sum(labels == index)
        total = (
            MEANS[index] * COUNTS[index] + found[f"preference/{name}_reward"] * count
        )
        np.testing.assert_allclose(
            after.reward_means[index], total / (COUNTS[index] + count), rtol=1e-5
        )
        assert after.reward_counts[index] == COUNTS[index] + count
    assert found["preference/baseline"] == pytest.approx(np.mean(MEANS))
    for kind in ("kto", "apo_zero"):
        np.testing.assert_allclose(plain(kind)[0].reward_means, MEANS)


def test_mismatched_rows():
    # Row 2 has no label: its completion goes to nobody, row 3's to row 1.
    batch = token_batch(
        [[1, 2, 7, 8, 9], [3, 5, 5, 0, 0], [4, 6, 6, 6, 0], [4, 4, 4, 4, 1]],
        real=[[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        mask=[[0, 0, 1, 0, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]],
    )
    found = mismatched(batch, jnp.array([True, True, False, True]), None)
    real = np.array(
        [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    )
    np.testing.assert_array_equal(found.segment_ids, real)
    np.testing.assert_array_equal(
        found.tokens * real,
        [[1, 2, 5, 5, 0], [3, 1, 0, 0, 0], [4, 1, 0, 0, 0], [4, 4, 4, 4, 7]],
    )
    mask = [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(found.mask, np.array(mask) > 0)
    np.testing.assert_array_equal(found.positions[0, :4], range(4))


@every_kind
def test_rows_without_a_label_have_no_part(kind):
    batch, labels = labelled()
    spoilt = np.where((labels < 0)[:, None], batch.tokens + 1, batch.tokens) % 24
    spoilt = dataclasses.replace(batch, tokens=spoilt)
    clean, dirty = plain(kind), updated(kind, (spoilt, labels))
    chex.assert_trees_all_equal(clean[0].params, dirty[0].params)
    assert clean[1] == dirty[1]
    nothing, found = updated(kind, (batch, np.full_like(labels, -1)))
    chex.assert_trees_all_equal(nothing.params, tables()[0])
    assert found["optim/grad_norm"] == 0


@every_kind
def test_what_is_not_finite_under_the_mask_changes_nothing(kind):
    batch, labels = labelled()

    def noisy(params, batch, **options):
        output = tabular_policy(params, batch, **options)
        owned = jnp.roll(batch.mask, -1, axis=1)[..., None]
        return ModelOutput(jnp.where(owned, output.logits, jnp.nan))

    step = quick_jit(functools.partial(step_of(kind), ref_apply_fn=noisy))
    after, metrics = step(started().replace(apply_fn=noisy), (batch, labels))
    expected, numbers = plain(kind)
    assert_same((after.params, metrics.compute()), (expected.params, numbers))


def test_frozen_parameters_are_joined_and_stay():
    params = tables()[0]
    trained, frozen = ({name: params[name]} for name in ("logits", "values"))
    step = quick_jit(step_of("kto"))
    after, _ = step(started(trained), labelled(), frozen=frozen)
    assert set(after.params) == {"logits"}
    expected = plain("kto")[0].params["logits"]
    np.testing.assert_allclose(after.params["logits"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"desirable_weight": -1.0},
        {"undesirable_weight": float("nan")},
        {"micro_batches": 0},
    ],
)
def test_config_names_the_option(options):
    with pytest.raises(UserError, match=next(iter(options))):
        UnpairedConfig(**options)
