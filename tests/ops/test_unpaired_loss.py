"""Numbers derived by hand; oracle, gradients and laws are in test_laws.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import preference_loss, unpaired_loss

LABELS = jnp.array([True, False])
UP = jnp.full(2, np.log(3), jnp.float32)  # u = log 3: σ(u) = 3/4


# One good and one bad completion with the same u.
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"kind": "kto", "baseline": 0.0}, [1 / 4, 3 / 4]),
        ({"kind": "kto", "baseline": np.log(3)}, [1 / 2, 1 / 2]),
        ({"kind": "kto", "baseline": -5.0}, [1 / 4, 3 / 4]),
        ({"kind": "bco", "baseline": 0.0}, [-np.log(3 / 4), -np.log(1 / 4)]),
        ({"kind": "bco", "baseline": -np.log(3)}, [-np.log(0.9), -np.log(0.1)]),
        ({"kind": "apo_zero"}, [1 / 4, 3 / 4]),
        ({"kind": "apo_zero", "desirable_weight": 2.0}, [1 / 2, 3 / 4]),
        ({"kind": "apo_zero", "undesirable_weight": 0.0}, [1 / 4, 0.0]),
    ],
)
def test_by_hand(options: dict[str, Any], expected):
    loss = unpaired_loss(UP, 0 * UP, LABELS, beta=1.0, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("kind, baseline", [("kto", 0.4), ("bco", -0.4)])
def test_no_gradient_goes_to_the_baseline(kind, baseline):
    def loss(logps, baseline):
        terms = unpaired_loss(logps, 0 * UP, LABELS, kind=kind, baseline=baseline)
        return jnp.sum(terms * jnp.arange(1.0, 3.0))

    at = jnp.float32(baseline)
    assert loss(UP, at) != loss(UP, 2 * at)
    assert jax.grad(loss, argnums=1)(UP, at) == 0
    assert np.all(jax.grad(loss)(UP, at) != 0)


def test_a_good_and_a_bad_completion_are_the_pair_of_apo():
    four = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    chosen, rejected, ref_chosen, ref_rejected = map(jnp.asarray, four)
    of = lambda x, ref, good: unpaired_loss(x, ref, good, kind="apo_zero")
    good = jnp.ones(3, bool)
    both = of(chosen, ref_chosen, good) + of(rejected, ref_rejected, ~good)
    pair = preference_loss(chosen, rejected, ref_chosen, ref_rejected, kind="apo_zero")
    np.testing.assert_allclose(both, pair, rtol=1e-6)


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"kind": "dpo"}, "kind = 'dpo', expected one of kto, bco, apo_zero"),
        ({"beta": 0.0}, "beta = 0.0, expected more than 0"),
        ({"baseline": None}, "baseline = None, expected a number for kto"),
        ({"kind": "apo_zero"}, "baseline = 0.0: it is for kto, bco, not for apo_z"),
        ({"desirable_weight": -1.0}, "desirable_weight = -1.0, expected 0 or more"),
        ({"undesirable_weight": -1.0}, "undesirable_weight = -1.0, expected 0 or m"),
    ],
)
def test_options_are_checked(options: dict[str, Any], wrong):
    options = {"baseline": 0.0} | options
    with pytest.raises(ValueError, match=f"^unpaired_loss: {wrong}"):
        unpaired_loss(UP, UP, LABELS, **options)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        unpaired_loss(UP, UP[:1], LABELS, kind="apo_zero")
    with pytest.raises(AssertionError):
        unpaired_loss(UP, UP, LABELS.astype(jnp.int32), kind="apo_zero")
    with pytest.raises(AssertionError):
        unpaired_loss(UP, UP, LABELS, baseline=UP)
