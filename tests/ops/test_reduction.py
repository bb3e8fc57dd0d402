from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import loss_weights

# Sequences of 3 and 1 tokens in one row, of 2 in the next; one of none in the last.
IDS = jnp.array([[1, 1, 1, 1, 2, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
MASK = jnp.array([[1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0] * 6], bool)
TERMS = jnp.array([[1, 2, 9, 3, 7, 9], [9, 4, 8, 9, 9, 9], [9] * 6], jnp.float32)
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "token": ({}, (1 + 2 + 3 + 7 + 4 + 8) / 6),
    "sequence": ({}, ((1 + 2 + 3) / 3 + 7 + (4 + 8) / 2) / 3),
    "constant": ({"length": 5}, (1 + 2 + 3 + 7 + 4 + 8) / (3 * 5)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def numerator(mask, ids, terms, kind, options):
    weights, count = loss_weights(mask, ids, kind=kind, **options)
    return jnp.sum(weights * terms), count


@every_kind
def test_by_hand(kind: Any):
    options, expected = KINDS[kind]
    total, count = numerator(MASK, IDS, TERMS, kind, options)
    assert count == (6 if kind == "token" else 3)  # the sequence of none is not counted
    np.testing.assert_allclose(total / count, expected, rtol=1e-6)


def test_a_row_is_one_sequence_without_ids():
    weights, count = loss_weights(MASK, kind="sequence")
    assert weights.sum(axis=1).tolist() == [1, 1, 0]
    assert count == 2


@every_kind
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_devices_and_micro_batches_change_nothing(kind: Any, parts):
    """Numerators and counts add: 24 rows, the first ones without a token."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (24, 9)), axis=1))
    mask = jnp.asarray(rng.random((24, 9)) < 0.5) & (ids > 0)
    mask = mask.at[:3].set(False)
    terms = jnp.asarray(rng.normal(size=(24, 9)), jnp.float32)
    options, _ = KINDS[kind]

    def on_device(mask, ids, terms):
        both = numerator(mask, ids, terms, kind, options)
        return jax.lax.psum(both, "device")

    split = lambda x: x.reshape(parts, -1, *x.shape[1:])
    total, count = jax.pmap(on_device, axis_name="device")(
        split(mask), split(ids), split(terms)
    )
    whole, whole_count = numerator(mask, ids, terms, kind, options)
    assert set(count.tolist()) == {float(whole_count)}
    np.testing.assert_allclose(total[0], whole, rtol=1e-5)


def test_counts_are_whole_for_every_length():
    # A sum of n times 1/n is not 1 in float32 for some n.
    mask = jnp.arange(129)[None] <= jnp.arange(129)[:, None]
    for kind, length in [("sequence", None), ("constant", 7)]:
        for some in (mask, mask[:41]):
            _, count = loss_weights(some, kind=kind, length=length)
            assert count == some.shape[0]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"kind": "mean"}, "'mean', expected token, sequence or constant"),
        ({"kind": "constant"}, "length = None, expected more than 0"),
        ({"kind": "constant", "length": 0}, "length = 0, expected more than 0"),
        ({"length": 5}, "length = 5 is for constant, not token"),
    ],
)
def test_options_are_checked(options: dict[str, Any], complaint):
    with pytest.raises(ValueError, match=complaint):
        loss_weights(MASK, IDS, **options)
