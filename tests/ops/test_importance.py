from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import importance_weights

# Ratios 4 and ½ of one response, ¼ of the next; products 2 and ¼.
SAMPLER = jnp.full((1, 4), -2.0)
LOGPROBS = SAMPLER + jnp.log(jnp.array([[4.0, 0.5, 0.25, 9.0]]))
IDS = jnp.array([[1, 1, 2, 0]])
MASK = jnp.array([[True, True, True, False]])


@pytest.mark.parametrize(
    "kind, level, cap, expected",
    [
        ("truncate", "token", 2.0, [2.0, 0.5, 0.25, 0.0]),
        ("mask", "token", 2.0, [0.0, 0.5, 0.25, 0.0]),
        ("truncate", "sequence", 1.5, [1.5, 1.5, 0.25, 0.0]),
        ("truncate", "sequence", 3.0, [2.0, 2.0, 0.25, 0.0]),
        ("mask", "sequence", 1.5, [0.0, 0.0, 0.25, 0.0]),
    ],
)
def test_by_hand(kind: Any, level: Any, cap, expected):
    options = {"kind": kind, "level": level, "cap": cap}
    got = importance_weights(LOGPROBS, SAMPLER, MASK, segment_ids=IDS, **options)
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_the_right_sampler_needs_no_correction():
    for level in ("token", "sequence"):
        got = importance_weights(SAMPLER, SAMPLER, MASK, level=level)
        assert got.tolist() == [[1, 1, 1, 0]]


def test_no_gradient_flows():
    total = lambda a, b: jnp.sum(importance_weights(a, b, MASK))
    for slope in jax.grad(total, argnums=(0, 1))(LOGPROBS, SAMPLER):
        assert slope.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("kind, expected", [("truncate", 2.0), ("mask", 0.0)])
def test_an_overflowing_ratio_is_capped(kind: Any, expected):
    got = importance_weights(SAMPLER + 100, SAMPLER, MASK, kind=kind, level="sequence")
    assert got.tolist() == [[expected] * 3 + [0.0]]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"kind": "clip"}, "kind = 'clip', expected truncate or mask"),
        ({"level": "row"}, "level = 'row', expected token or sequence"),
        ({"cap": 0.0}, "cap = 0.0, expected more than 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], complaint):
    with pytest.raises(ValueError, match=complaint):
        importance_weights(LOGPROBS, SAMPLER, MASK, **options)
