"""Every kind of preference loss in a step; references asked once, or never."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit
from ops import preference_oracles
from steps.batches import assert_same, network, pairs, plain, task
from toys import tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.steps import (
    PreferenceConfig,
    create_state,
    preference_step,
    reference_logps,
)
from rlhf_jax.types import PreferenceBatch

KINDS: dict[str, dict[str, Any]] = {
    "dpo, alpha": {"kind": "dpo", "divergence": "alpha", "alpha": 0.3},
    "robust": {"kind": "robust", "label_smoothing": 0.2},
    "exo": {"kind": "exo"},
    "discopop": {"kind": "discopop", "tau": 0.5},
    "hinge": {"kind": "hinge"},
    "nca": {"kind": "nca"},
    "sppo": {"kind": "sppo"},
    "apo_zero": {"kind": "apo_zero"},
    "apo_down": {"kind": "apo_down"},
    "aot": {"kind": "aot", "label_smoothing": 0.2},
    "aot_unpaired": {"kind": "aot_unpaired"},
    "simpo": {"kind": "simpo", "gamma": 0.3},
    "cpo": {"kind": "cpo", "nll_coef": 0.5},
    "cpo_hinge": {"kind": "cpo_hinge"},
    "orpo": {"kind": "orpo", "nll_coef": 1.0},
}
FREE = ("simpo", "cpo", "cpo_hinge", "orpo")
every_kind = pytest.mark.parametrize("name", KINDS)


def config(name, **options):
    return PreferenceConfig(beta=0.5, **KINDS[name] | options)


def updated(
    config, batch=None, *, table=True, ref_params=None, reference=None, **options
) -> tuple[Any, Any]:
    """(parameters, metrics) after an update of SGD at rate 1."""
    _, state, plain_batch = task("dpo", table=table)
    batch = plain_batch if batch is None else batch
    step = functools.partial(preference_step, config=config, **options)
    after, metrics = quick_jit(step)(state, batch, ref_params, None, reference)
    return after.params, metrics.compute()


def referred(config, batch=None, *, table=True) -> tuple[Any, Any]:
    """As `updated`, the reference asked within the step where there is one."""
    if config.kind in FREE:
        return updated(config, batch, table=table)
    apply_fn, params = network("policy", table=table, seed=2)
    return updated(config, batch, table=table, ref_params=params, ref_apply_fn=apply_fn)


def answered():
    """Pairs of which the first quarter, and those without any token, have no weight.

    An answer without tokens has no odds: it is certain.
    """
    batch = pairs()
    for side in (batch.chosen, batch.rejected):
        batch = dataclasses.replace(batch, weight=batch.weight * side.mask.any(axis=1))
    assert 0 < np.sum(batch.weight == 0) < len(batch.weight) - 3
    return batch


def oracle(name, logits, ref_logits, batch):
    """The loss and its metrics, float64, one token of one pair at a time."""
    options = dict(KINDS[name])
    nll_coef = options.pop("nll_coef", 0.0)

    def logps(logits, side):
        z, rows = np.asarray(logits, np.float64), []
        for b in range(len(side.tokens)):
            owned = [t for t in range(side.tokens.shape[1]) if side.mask[b, t]]
            lines = [(z[side.tokens[b, t - 1]], side.tokens[b, t]) for t in owned]
            rows.append([row[y] - np.log(np.sum(np.exp(row))) for row, y in lines])
        return rows

    there = batch.weight > 0
    sides = [logps(logits, s) for s in (batch.chosen, batch.rejected)]
    refs = [logps(ref_logits, s) for s in (batch.chosen, batch.rejected)]
    of_all = lambda f, rows: np.array([f(r) for r in rows])[there]
    mean = lambda row: sum(row) / max(len(row), 1)
    reduce = mean if name in ("simpo", "orpo") else sum
    own = [of_all(reduce, rows) for rows in sides]
    ref = [of_all(sum, rows) for rows in refs]
    if name in FREE:
        ref = [np.zeros_like(x) for x in ref]
        loss = preference_oracles.reference_free(*own, **options, beta=0.5)
    else:
        loss = preference_oracles.preference(*own, *ref, **options, beta=0.5)
    loss = loss - nll_coef * of_all(mean, sides[0])
    margin = 0.5 * (own[0] - ref[0] - own[1] + ref[1])
    return {
        "preference/loss": np.average(loss, weights=batch.weight[there]),
        "preference/accuracy": np.mean((1 + np.sign(margin)) / 2),
        "preference/margin": margin.mean(),
        "preference/chosen_logps": own[0].mean(),
        "preference/rejected_logps": own[1].mean(),
    }


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Logits of the policy and of the reference."""
    one, other = (
        np.asarray(network("policy", table=True, seed=s)[1]["logits"]) for s in (1, 2)
    )
    return one, other


@every_kind
def test_metrics_equal_the_oracle(name):
    batch = answered()
    _, found = referred(config(name), batch)
    assert found.pop("optim/grad_norm") > 1e-3
    assert found.pop("optim/skipped") == found.pop("optim/empty") == 0
    assert found == pytest.approx(oracle(name, *tables(), batch), rel=2e-5)


@pytest.mark.parametrize("name", ["dpo, alpha", "aot", "nca", "simpo", "orpo"])
def test_gradient_equals_finite_differences_of_the_oracle(name):
    batch, (logits, ref) = answered(), tables()
    after, _ = referred(config(name), batch)
    gradient = logits - np.asarray(after["logits"])
    largest = np.argsort(-np.abs(gradient).ravel())[:12]
    for index in [divmod(i, logits.shape[1]) for i in largest]:
        sides = []
        for h in (1e-5, -1e-5):
            moved = logits.astype(np.float64)
            moved[index] += h
            sides.append(oracle(name, moved, ref, batch)["preference/loss"])
        numeric = (sides[0] - sides[1]) / 2e-5
        assert gradient[index] == pytest.approx(numeric, rel=1e-4, abs=1e-6)


OF_TOKENS = PreferenceConfig(beta=0.5, ld_alpha=0.3, weighted=True)


@pytest.mark.parametrize(
    "config", [*map(config, ["aot", "nca", "simpo", "orpo"]), OF_TOKENS]
)
def test_packed_rows_change_nothing(config):
    """A packed row has places for pairs that are not there: they have no rank."""
    alone = jax.tree.map(lambda x: x[4:], pairs())  # those with a weight
    assert np.all(alone.weight > 0)
    packed = referred(config, pairs(packed=True))
    assert_same(packed, referred(config, alone))


def test_a_reference_asked_before_counts_tokens_alike():
    apply_fn, params = network("policy", table=True, seed=2)
    ask = functools.partial(reference_logps, params, pairs(), ref_apply_fn=apply_fn)
    within = referred(OF_TOKENS, pairs())
    assert_same(updated(OF_TOKENS, pairs(), reference=ask(ld_alpha=0.3)), within)
    with pytest.raises(AssertionError):
        assert_same(updated(OF_TOKENS, pairs(), reference=ask()), within)


@pytest.mark.parametrize("packed", [False, True])
def test_a_reference_asked_before_is_as_good(packed):
    batch, table = pairs(packed=packed), not packed
    apply_fn, params = network("policy", table=table, seed=2)
    ask = quick_jit(functools.partial(reference_logps, ref_apply_fn=apply_fn))
    reference = ask(params, batch)
    assert reference.shape == ((8, 6, 2) if packed else (16, 1, 2))
    within = referred(PreferenceConfig(), batch, table=table)
    of = functools.partial(updated, PreferenceConfig(), batch, table=table)
    assert_same(of(reference=reference), within)
    with pytest.raises(AssertionError):
        assert_same(of(reference=0.9 * reference), within)


@pytest.mark.parametrize("devices, parts", [(1, 4), (4, 2)])
def test_a_reference_is_cut_as_the_batch_is(devices, parts):
    _, state, batch = task("dpo")
    apply_fn, params = network("policy", table=True, seed=2)
    reference = reference_logps(params, batch, ref_apply_fn=apply_fn)
    step = functools.partial(
        preference_step, config=PreferenceConfig(micro_batches=parts)
    )
    where = local_devices(devices)
    mapped = data_parallel(step, where, in_axes=(None, 0, None, None, 0), out_axes=None)
    after, metrics = mapped(
        replicate(state, where),
        shard(batch, where),
        None,
        None,
        shard(reference, where),
    )
    assert_same((after.params, metrics.compute()), plain("dpo"))


def test_a_reference_given_or_absent_is_not_asked():
    asked = []

    def policy(*args, **options):
        asked.append(args)
        return tabular_policy(*args, **options)

    reference = jnp.zeros((16, 1, 2))
    updated(config("nca"), reference=reference, ref_apply_fn=policy)
    updated(config("simpo"), ref_apply_fn=policy)
    assert not asked
    params = network("policy", table=True)[1]
    updated(config("nca"), ref_params=params, ref_apply_fn=policy)
    assert len(asked) == 1


def test_no_gradient_goes_to_a_reference_given():
    _, state, batch = task("dpo")

    def after(reference):
        step = functools.partial(preference_step, config=PreferenceConfig())
        state_after, _ = step(state, batch, reference=reference)
        return jnp.sum(jnp.square(state_after.params["logits"]))

    reference = -5 + jnp.arange(32.0).reshape(16, 1, 2) % 3
    value, slope = quick_jit(jax.value_and_grad(after))(reference)
    assert value != quick_jit(after)(2 * reference)
    assert not np.any(slope)


def test_likelihood_term_by_hand():
    # Answers of one token of three, all as likely: NLL log 3 beside a loss of log 2. At
    # the logits of prompt 0 the one's gradient is softmax − one-hot = (⅓, −⅔, ⅓), the
    # other's β/2 · (0, −1, 1).
    side = lambda answer: token_batch([[0, answer]], mask=[[False, True]])
    one = PreferenceBatch(
        side(1),
        side(2),
        margin=jnp.zeros(1),
        weight=jnp.ones(1),
        annotator=-jnp.ones(1),
    )
    flat = {"logits": jnp.zeros((3, 3)), "values": jnp.zeros(3)}
    step = functools.partial(preference_step, config=PreferenceConfig(nll_coef=0.5))
    after, metrics = quick_jit(step)(
        create_state(tabular_policy, flat, optax.sgd(1.0)),
        one,
        reference=jnp.full((1, 1, 2), -np.log(3)),
    )
    loss = metrics.compute()["preference/loss"]
    assert loss == pytest.approx(np.log(2) + 0.5 * np.log(3))
    expected = [-1 / 6, 1 / 3 + 0.05, -1 / 6 - 0.05]
    np.testing.assert_allclose(after.params["logits"][0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({}, "kind = 'dpo', expected ref_params or reference"),
        ({"ref_params": {}, "reference": 0}, "both ref_params and reference"),
        ({"ref_params": {}}, "ref_params without ref_apply_fn"),
        ({"reference": np.zeros((16, 2))}, r"shape \(16, 2\), expected \(16, 1, 2\)"),
        ({"kind": "simpo", "ref_params": {}}, "kind = 'simpo' has no reference"),
        ({"kind": "orpo", "reference": 0}, "kind = 'orpo' has no reference"),
        (
            {"kind": "aot", "reference": np.zeros((16, 1, 2)), "axis_name": "devices"},
            "kind = 'aot' over the devices of 'devices', expected one device or a mesh",
        ),
    ],
)
def test_references_are_checked(options: dict[str, Any], wrong):
    given = PreferenceConfig(kind=options.pop("kind", "dpo"))
    with pytest.raises(ValueError, match=f"^preference_step: .*{wrong}"):
        _, state, batch = task("dpo")
        preference_step(state, batch, **options, config=given)


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"kind": "sigmoid"}, "kind = 'sigmoid', expected one of dpo, .*, orpo"),
        ({"kind": "simpo", "label_smoothing": 0.1}, "label_smoothing = 0.1: it is for"),
        ({"kind": "simpo", "divergence": "js"}, "divergence = 'js': it is for dpo"),
        ({"kind": "dpo", "gamma": 0.5}, "gamma = 0.5: it is for simpo, not for dpo"),
        ({"kind": "nca", "tau": 0.05}, "tau = 0.05: it is for discopop, not for nca"),
        ({"kind": "exo", "label_smoothing": 0.0}, "label_smoothing = 0 for exo"),
        ({"nll_coef": -1.0}, "nll_coef = -1.0: expected 0 or more"),
        ({"kind": "aot", "micro_batches": 2}, "micro_batches = 2: expected 1 for aot"),
    ],
)
def test_config_names_the_option(options: dict[str, Any], wrong):
    with pytest.raises(UserError, match=f"^{wrong}"):
        PreferenceConfig(**options)
