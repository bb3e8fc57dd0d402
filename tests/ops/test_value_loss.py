from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import explained_variance, value_loss

# old 0, ε = 1. Values 3, 3, ½: clipped to 1, 1, ½. Targets 4, 0, 0.
VALUES, OLD = jnp.array([[3.0, 3.0, 0.5]]), jnp.zeros((1, 3))
RETURNS, MASK = jnp.array([[4.0, 0.0, 0.0]]), jnp.full((1, 3), True)
# ½ max(1², 3²), ½ max(3², 1²), ½ · ½²: only the first has its loss raised.
TERMS = [[4.5, 4.5, 0.125]]


def test_by_hand():
    terms, metrics = value_loss(VALUES, OLD, RETURNS, MASK, clip_eps=1.0)
    assert terms.tolist() == TERMS
    assert metrics.compute() == pytest.approx(
        {
            "value/loss": 9.125 / 3,
            "value/clip_fraction": 1 / 3,
            "value/mean": 6.5 / 3,
            "value/error": (1 + 9 + 0.25) / 3,
        }
    )


def test_without_clipping():
    terms, metrics = value_loss(VALUES, OLD, RETURNS, MASK, clip_eps=None)
    assert terms.tolist() == [[0.5, 4.5, 0.125]]
    assert metrics.compute()["value/clip_fraction"] == 0.0


def test_gradients():
    loss = lambda v, eps: value_loss(v, OLD, RETURNS, MASK, clip_eps=eps)[0].sum()
    # 0 where clipping raised the loss; elsewhere V - R, in full where the two tie.
    assert jax.grad(loss)(VALUES, 1.0).tolist() == [[0.0, 3.0, 0.5]]
    assert jax.grad(loss)(VALUES, None).tolist() == [[-1.0, 3.0, 0.5]]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 2.0, 4.0], 1.0),
        ([7.0, 9.0, 11.0], 1.0),  # off by a constant: still explains all
        ([5.0, 5.0, 5.0], 0.0),
        ([0.0, -2.0, -4.0], -3.0),  # residuals twice as wide: 1 - 4
    ],
)
def test_explained_variance(values, expected):
    returns = jnp.array([[0.0, 2.0, 4.0]])
    got = explained_variance(jnp.array([values]), returns, MASK)
    assert float(got) == pytest.approx(expected)


def test_explained_variance_of_constant_returns_is_0():
    # The mean of equal float32 numbers may round, and their variance with it.
    values = jax.random.normal(jax.random.key(0), (4, 7))
    for constant in (0.1, -0.3, 1 / 3, 1e6 / 7):
        returns = jnp.full((4, 7), constant)
        got, slope = jax.value_and_grad(explained_variance)(
            values, returns, jnp.full((4, 7), True)
        )
        assert got == 0.0
        np.testing.assert_array_equal(slope, 0.0)


def test_explained_variance_over_devices_is_that_of_the_whole_batch():
    values, returns = jax.random.normal(jax.random.key(0), (2, 4, 6)) + 1.0
    mask = jnp.arange(6)[None] < jnp.array([0, 2, 6, 3])[:, None]  # device 0 has none
    share = partial(explained_variance, axis_name="device")
    split = lambda x: x.reshape(4, 1, 6)
    # As the auxiliary output of a loss, it is traced for derivatives as well.
    got, _ = jax.pmap(jax.value_and_grad(share), axis_name="device")(
        *map(split, (values, returns, mask))
    )
    expected = explained_variance(values, returns, mask)
    np.testing.assert_allclose(got, [expected] * 4, rtol=1e-5)
