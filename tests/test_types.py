import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.masking import masked_sum
from rlhf_jax.types import Metrics, TokenBatch


def of(name, total, count, **maxima):
    return Metrics.of({name: (total, count)}, maxima=maxima)


def test_sums_and_counts_add_before_the_division():
    # 6 over 3 tokens and 10 over 1 token: 16/4 = 4, where the mean of means is 6.
    assert (of("loss", 6.0, 3) + of("loss", 10.0, 1)).compute() == {"loss": 4.0}


def test_maxima_take_the_larger_and_are_no_means():
    both = of("a", 0.0, 1, m=-3.0) + of("a", 0.0, 1, m=-5.0)
    assert both.compute() == {"a": 0.0, "m": -3.0}


def test_names_in_only_one_set_are_kept():
    both = of("a", 2.0, 1, m=1.0) + of("b", 9.0, 3, n=2.0)
    assert both.compute() == {"a": 2.0, "b": 3.0, "m": 1.0, "n": 2.0}


def test_a_mean_over_nothing_is_nan():
    assert math.isnan(of("a", 0.0, 0).compute()["a"])


def test_everything_is_float32():
    metrics = Metrics.of({"a": (jnp.int32(3), 4)}, maxima={"m": 2})
    assert {x.dtype for x in jax.tree.leaves(metrics)} == {jnp.dtype(jnp.float32)}


def test_collapse_combines_what_scan_stacks():
    def step(carry, x):
        return carry, of("a", x, x, m=-x)

    _, stacked = jax.lax.scan(step, None, jnp.array([1.0, 2.0, 5.0]))
    collapsed = stacked.collapse()
    assert float(collapsed.sums["a"]) == float(collapsed.counts["a"]) == 8.0
    assert float(collapsed.maxima["m"]) == -1.0


def test_reduce_combines_over_devices():
    def step(x, mask):
        return Metrics.of({"a": masked_sum(x, mask)}, {"m": x.max()}).reduce("device")

    x = jnp.arange(8.0).reshape(4, 2)
    mask = jnp.array([[True, True], [False, False], [True, False], [False, True]])
    reduced = jax.pmap(step, axis_name="device")(x, mask)
    one = jax.tree.map(lambda leaf: leaf[2], reduced)  # all devices hold the same
    assert one.compute() == {"a": (0 + 1 + 4 + 7) / 4, "m": 7.0}


def test_reduce_over_no_axis_changes_nothing():
    metrics = of("a", 1.0, 2)
    assert metrics.reduce(None) is metrics


def test_metrics_pass_through_jit():
    assert jax.jit(lambda m: m + m)(of("a", 1.0, 2)).compute() == {"a": 0.5}


def test_batches_are_frozen_pytrees():
    ones = jnp.ones((2, 3), jnp.int32)
    batch = TokenBatch(tokens=ones, segment_ids=ones, positions=ones, mask=ones == 1)
    rows = jax.tree.map(lambda x: x[:1], batch)
    np.testing.assert_array_equal(rows.tokens, ones[:1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.tokens = ones
