"""DPO and IPO on a table of logits: numbers, weights, masks, devices."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.steps import PreferenceConfig, create_state, preference_step
from rlhf_jax.types import ModelOutput, PreferenceBatch

VOCAB, ROWS = 5, 16
CONFIGS = {
    "dpo": PreferenceConfig(beta=0.5),
    "cdpo": PreferenceConfig(beta=0.5, label_smoothing=0.2),
    "ipo": PreferenceConfig(kind="ipo", beta=0.5),
    "ld_dpo": PreferenceConfig(beta=0.5, ld_alpha=0.3),
    "wpo": PreferenceConfig(beta=0.5, weighted=True),
}
every_kind = pytest.mark.parametrize("kind", CONFIGS)


def _state(params, lr=1.0, apply_fn=tabular_policy):
    return create_state(apply_fn, params, optax.sgd(lr))


def _table(seed):
    return tabular_params(jax.random.key(seed), VOCAB)


def _flat(vocab=3):
    return {"logits": jnp.zeros((vocab, vocab)), "values": jnp.zeros(vocab)}


def _pairs(chosen, rejected, weight=None):
    n = chosen.tokens.shape[0]
    return PreferenceBatch(
        chosen=chosen,
        rejected=rejected,
        margin=jnp.zeros(n),
        weight=jnp.ones(n) if weight is None else jnp.asarray(weight, jnp.float32),
        annotator=jnp.full(n, -1),
    )


def _answers(chosen, rejected, weight=None):
    """Prompt 0 and an answer of one token."""
    rows = lambda tokens: token_batch(
        [[0, t] for t in tokens], mask=[[False, True] for _ in tokens]
    )
    return _pairs(rows(chosen), rows(rejected), weight)


def _random_pairs():
    """Prompts of one or two tokens, answers of different lengths, padding after."""
    rng = np.random.default_rng(0)

    def side():
        length = rng.integers(1, 5, ROWS)[:, None]
        start = rng.integers(1, 3, ROWS)[:, None]
        column = np.arange(6)[None]
        mask = (column >= start) & (column < start + length)
        tokens = rng.integers(0, VOCAB, (ROWS, 6))
        return token_batch(tokens, real=column < start + length, mask=mask)

    return _pairs(side(), side(), np.where(np.arange(ROWS) < 4, 0, rng.random(ROWS)))


def _step(kind, ref_apply_fn=tabular_policy):
    return functools.partial(
        preference_step, ref_apply_fn=ref_apply_fn, config=CONFIGS[kind]
    )


def oracle(kind, logits, ref_logits, pairs, now=None):
    """The loss and its metrics: float64, one token of one pair at a time.

    ``now`` are the logits through which no gradient goes.
    """
    config = CONFIGS[kind]
    now = np.asarray(logits if now is None else now, np.float64)

    def logp(logits, side, b):
        z, total, seen = np.asarray(logits, np.float64), 0.0, 0
        shorter = min(s.mask[b].sum() for s in (pairs.chosen, pairs.rejected))
        for t in range(1, side.tokens.shape[1]):
            if side.mask[b, t]:
                before, token = side.tokens[b, t - 1], side.tokens[b, t]
                logp = z[before, token] - np.log(np.sum(np.exp(z[before])))
                total += logp * (1 if seen < shorter else config.ld_alpha)
                seen += 1
        return total

    def own(side, b):
        excess = []
        for t in range(1, side.tokens.shape[1]):
            if side.mask[b, t]:
                p = np.exp(now[side.tokens[b, t - 1]])
                p /= p.sum()
                excess.append(np.log(p[side.tokens[b, t]] / np.sum(p**2)))
        return np.exp(np.mean(excess))

    rows = []
    for b, weight in enumerate(np.asarray(pairs.weight, np.float64)):
        if weight == 0:
            continue
        chosen, rejected = (logp(logits, s, b) for s in (pairs.chosen, pairs.rejected))
        delta = chosen - logp(ref_logits, pairs.chosen, b)
        delta -= rejected - logp(ref_logits, pairs.rejected, b)
        win = 1 / (1 + np.exp(-config.beta * delta))
        eps = config.label_smoothing or 0.0
        loss = -(1 - eps) * np.log(win) - eps * np.log(1 - win)
        if kind == "ipo":
            loss = (delta - 1 / (2 * config.beta)) ** 2
        factor = own(pairs.chosen, b) * own(pairs.rejected, b)
        if config.weighted:
            loss *= factor
        right = (1 + np.sign(delta)) / 2
        found = (right, config.beta * delta, chosen, rejected, factor)
        rows.append((weight, loss, *found))
    weight, loss, *rest = np.array(rows).T
    names = ("accuracy", "margin", "chosen_logps", "rejected_logps", "own")
    if not config.weighted:
        names, rest = names[:-1], rest[:-1]
    means = {f"preference/{n}": x.mean() for n, x in zip(names, rest, strict=True)}
    return {"preference/loss": np.sum(weight * loss) / np.sum(weight)} | means


def test_first_update_by_hand():
    # π = π_ref: loss log 2, and the gradient at the log-probs is −β/2 and β/2. Of a
    # flat table, d log π(1)/dz = (−⅓, ⅔, −⅓), so that z moves by β/2 · (0, 1, −1).
    state, metrics = _step("dpo")(_state(_flat()), _answers([1], [2]), _flat())
    expected = np.zeros((3, 3))
    expected[0] = [0, 0.25, -0.25]
    np.testing.assert_allclose(state.params["logits"], expected, atol=1e-7)
    assert metrics.compute() == pytest.approx(
        {
            "preference/loss": np.log(2),
            "preference/accuracy": 0.5,
            "preference/margin": 0.0,
            "preference/chosen_logps": -np.log(3),
            "preference/rejected_logps": -np.log(3),
            "optim/grad_norm": 0.25 * np.sqrt(2),
            "optim/skipped": 0.0,
            "optim/empty": 0.0,
        }
    )


@every_kind
def test_metrics_equal_the_oracle(kind):
    pairs, params, reference = _random_pairs(), _table(1), _table(2)
    _, metrics = _step(kind)(_state(params), pairs, reference)
    found = metrics.compute()
    for name in ("grad_norm", "skipped", "empty"):
        del found[f"optim/{name}"]
    expected = oracle(kind, params["logits"], reference["logits"], pairs)
    assert found == pytest.approx(expected, rel=1e-5)


@every_kind
def test_gradient_equals_finite_differences_of_the_oracle(kind):
    pairs, params, reference = _random_pairs(), _table(1), _table(2)
    after, _ = _step(kind)(_state(params), pairs, reference)
    logits = np.asarray(params["logits"], np.float64)
    gradient = logits - np.asarray(after.params["logits"])  # SGD at rate 1
    for index in np.ndindex(*logits.shape):
        sides = []
        for h in (1e-5, -1e-5):
            moved = logits.copy()
            moved[index] += h
            found = oracle(kind, moved, reference["logits"], pairs, now=logits)
            sides.append(found["preference/loss"])
        numeric = (sides[0] - sides[1]) / 2e-5
        assert gradient[index] == pytest.approx(numeric, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "kind, lead", [("cdpo", np.log(4) / 0.5), ("ipo", 1 / (2 * 0.5))]
)
def test_learns_the_lead_that_the_loss_asks_for(kind, lead):
    # cDPO: σ(βΔ) = 4/5; IPO: Δ = 1/(2β). From π_ref = ⅓ each, Δ is the logits' lead.
    step = jax.jit(_step(kind))
    state = _state(_flat(), lr=0.2)
    for _ in range(800):
        state, _ = step(state, _answers([1], [2]), _flat())
    _, metrics = step(state, _answers([1], [2]), _flat())
    logits = state.params["logits"][0]
    assert float(logits[1] - logits[2]) == pytest.approx(lead, abs=1e-3)
    assert metrics.compute()["preference/accuracy"] == 1.0


def test_weights_count_pairs():
    # Weight 2 is the same as the pair twice; weight 0 as the pair absent.
    step = _step("dpo")
    twice, _ = step(_state(_flat()), _answers([1, 1, 2], [2, 2, 1]), _flat())
    weighted, metrics = step(
        _state(_flat()), _answers([1, 2, 2], [2, 1, 0], weight=[2, 1, 0]), _flat()
    )
    np.testing.assert_allclose(
        twice.params["logits"], weighted.params["logits"], atol=1e-7
    )
    assert metrics.compute()["preference/loss"] == pytest.approx(np.log(2))
    assert np.abs(twice.params["logits"]).max() > 0.01


def test_nothing_but_weight_0_leaves_the_parameters_alone():
    params = _table(1)
    pairs = dataclasses.replace(_random_pairs(), weight=jnp.zeros(ROWS))
    after, metrics = _step("ipo")(_state(params), pairs, _table(2))
    chex.assert_trees_all_equal(after.params, params)
    assert metrics.compute()["optim/grad_norm"] == 0


def test_garbage_under_the_mask_changes_nothing():
    # The tabular policy looks one token back, so a token matters where it is owned or
    # stands before one that is.
    pairs, reference = _random_pairs(), _table(2)

    def spoil(side):
        read = side.mask | jnp.roll(side.mask, -1, axis=1)
        tokens = jnp.where(read, side.tokens, VOCAB - 1)
        return dataclasses.replace(side, tokens=tokens)

    def noisy(params, batch, **options):  # NaN wherever nobody may look
        output = tabular_policy(params, batch, **options)
        owned = jnp.roll(batch.mask, -1, axis=1)[..., None]
        return ModelOutput(jnp.where(owned, output.logits, jnp.nan))

    spoilt = dataclasses.replace(
        pairs, chosen=spoil(pairs.chosen), rejected=spoil(pairs.rejected)
    )
    assert not np.array_equal(spoilt.chosen.tokens, pairs.chosen.tokens)
    clean = _step("dpo")(_state(_table(1)), pairs, reference)
    state = _state(_table(1), apply_fn=noisy)
    found = _step("dpo", noisy)(state, spoilt, reference)
    chex.assert_trees_all_equal(found[0].params, clean[0].params)
    chex.assert_trees_all_equal(found[1], clean[1])


def test_one_forward_pass_each():
    calls = []

    def counted(name):
        def apply_fn(params, batch, **options):
            calls.append((name, batch.tokens.shape[0]))
            return tabular_policy(params, batch, **options)

        return apply_fn

    state = _state(_table(1), apply_fn=counted("policy"))
    step = _step("dpo", counted("reference"))
    step(state, _random_pairs(), _table(2))
    assert sorted(calls) == [("policy", 2 * ROWS), ("reference", 2 * ROWS)]


def test_no_gradient_goes_to_the_reference():
    def after(reference):
        state, _ = _step("dpo")(_state(_table(1)), _random_pairs(), reference)
        return jnp.sum(jnp.square(state.params["logits"]))

    assert after(_table(2)) != after(_table(3))
    assert not np.any(jax.grad(after)(_table(2))["logits"])


def test_frozen_parameters_are_joined_and_stay():
    params = _table(1)
    frozen = {"values": params["values"]}
    trained = {"logits": params["logits"]}
    whole, _ = _step("dpo")(_state(params), _random_pairs(), _table(2))
    part, _ = _step("dpo")(_state(trained), _random_pairs(), _table(2), frozen)
    assert set(part.params) == {"logits"}
    np.testing.assert_array_equal(part.params["logits"], whole.params["logits"])


def test_one_compilation_serves_all_updates():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, pairs, reference):
        return _step("dpo")(state, pairs, reference)

    state = _state(_table(1))
    for _ in range(3):
        state, _ = step(state, _random_pairs(), _table(2))
    assert int(state.step) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "sigmoid"},
        {"beta": 0.0},
        {"label_smoothing": 0.5},
        {"label_smoothing": -0.1},
        {"kind": "ipo", "label_smoothing": 0.1},
        {"ld_alpha": 1.5},
        {"kind": "simpo", "ld_alpha": 0.5},
        {"kind": "aot", "weighted": True},
    ],
)
def test_config_names_the_option(options):
    with pytest.raises(UserError, match=next(reversed(options))):
        PreferenceConfig(**options)
