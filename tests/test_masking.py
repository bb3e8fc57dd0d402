import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.masking import (
    is_stop,
    last_column,
    last_token_mask,
    masked_mean,
    masked_sum,
    masked_whiten,
    response_mask,
    segment_mean,
    segment_sum,
    select_last,
)


def ragged_mask(num_devices: int, rows: int = 8, columns: int = 5) -> np.ndarray:
    """Rows of different lengths; with several devices, the first one owns nothing."""
    mask = np.arange(columns)[None] < np.arange(1, rows + 1)[:, None] % (columns + 1)
    if num_devices > 1:
        mask[: rows // num_devices] = False
    return mask


# Sums, means, whitening. Their oracles are rows of ops/test_laws.py.


def test_masked_mean_divides_once_by_the_count():
    x = jnp.array([[1.0, 2.0, 6.0], [5.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[True, False, True], [True, False, False]])
    assert masked_mean(x, mask) == 4.0  # (1 + 6 + 5) / 3
    assert [float(v) for v in masked_sum(x, mask)] == [12.0, 3.0]


@pytest.mark.fault(17)
def test_mean_over_nothing_is_0_with_gradient_0():
    nothing = jnp.full(3, False)
    x = jnp.array([1.0, jnp.nan, jnp.inf])
    value, slope = jax.value_and_grad(masked_mean)(x, nothing)
    assert value == 0.0
    assert slope.tolist() == [0.0, 0.0, 0.0]


def test_masked_sum_of_bfloat16_adds_in_float32():
    # 256 + 1 = 256 in bfloat16, which has 8 bits of precision.
    x = jnp.array([256.0] + [1.0] * 8, jnp.bfloat16)
    assert masked_sum(x, jnp.full(9, True))[0] == 264.0


def test_masks_must_be_bool():
    with pytest.raises(AssertionError):
        masked_mean(jnp.ones(2), jnp.ones(2))


def test_shapes_must_be_equal():
    with pytest.raises(AssertionError):
        masked_mean(jnp.ones((2, 1)), jnp.full((2, 3), True))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_entries_have_mean_and_variance(shift_mean):
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (8, 5)), jnp.float32)
    mask = ragged_mask(1)
    whitened = np.asarray(masked_whiten(x, jnp.asarray(mask), shift_mean=shift_mean))
    mean = 0.0 if shift_mean else np.asarray(x)[mask].mean()
    np.testing.assert_allclose(whitened[mask].mean(), mean, atol=1e-6)
    np.testing.assert_allclose(whitened[mask].std(), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(whitened[~mask], 0.0)


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_mean_gradient_and_whitening_do_not_depend_on_the_devices(num_devices):
    mask = jnp.asarray(ragged_mask(num_devices))
    x = jax.random.normal(jax.random.key(1), mask.shape)
    weight = jnp.array([0.3, -0.7, 1.1, 0.5, -0.2])

    def loss(weight, x, mask, axis_name=None):
        return masked_mean(jnp.tanh(x * weight[None]), mask, axis_name=axis_name)

    def on_device(weight, x, mask):
        value, grad = jax.value_and_grad(loss)(weight, x, mask, "device")
        whitened = masked_whiten(x, mask, axis_name="device")
        return value, jax.lax.pmean(grad, "device"), whitened

    split = lambda a: a.reshape(num_devices, -1, *a.shape[1:])
    values, grads, whitened = jax.pmap(
        on_device, axis_name="device", in_axes=(None, 0, 0)
    )(weight, split(x), split(mask))

    value, grad = jax.value_and_grad(loss)(weight, x, mask)
    assert np.abs(grad).min() > 1e-3  # a gradient of 0 would prove nothing
    for device in range(num_devices):
        np.testing.assert_allclose(values[device], value, rtol=1e-6)
        np.testing.assert_allclose(grads[device], grad, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        whitened.reshape(x.shape), masked_whiten(x, mask), rtol=1e-5, atol=1e-6
    )


# The last token of a row.


def test_last_token_of_rows_with_holes_and_without_any():
    mask = jnp.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    expected = [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert last_token_mask(mask).astype(int).tolist() == expected


def test_last_columns_are_valid_even_of_rows_without_any():
    mask = jnp.array([[[1, 0, 1, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 0, 0, 0]]], bool)
    columns = last_column(mask)
    assert columns.dtype == jnp.int32
    assert columns[0, 0] == 2 and 0 <= columns[0, 1] < 4
    assert columns[1].tolist() == [3, 0]


def test_select_last_of_vectors():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, True, False], [False, False, False]])
    assert select_last(x, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


# Sequences that share a row.


def test_sums_and_means_of_sequences_stand_at_their_tokens():
    x = jnp.array([[1.0, 3.0, jnp.nan, 5.0, 6.0, 10.0, jnp.inf]])
    ids = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
    mask = jnp.array([[1, 1, 0, 1, 1, 1, 0]], bool)
    assert segment_sum(x, mask, ids).tolist() == [[4, 4, 0, 21, 21, 21, 0]]
    assert segment_mean(x, mask, ids).tolist() == [[2, 2, 0, 7, 7, 7, 0]]
    assert segment_mean(x, mask).tolist() == [[5, 5, 0, 5, 5, 5, 0]]
    slope = jax.grad(lambda x: segment_mean(x, mask, ids)[0, 0])(x)
    assert slope.tolist() == [[0.5, 0.5, 0, 0, 0, 0, 0]]


def test_every_token_may_be_a_sequence_and_its_number_not_the_next():
    x, ids = jnp.arange(1.0, 4.0)[None], jnp.array([[3, 1, 2]])
    assert segment_sum(x, jnp.full((1, 3), True), ids).tolist() == x.tolist()


# Responses: start at column 2, the stop token is 9, the pad token is 0 or 9.


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    "response, emitted, truncated",
    [
        pytest.param([1, 2, 3, 4], [1, 1, 1, 1], True, id="no stop token"),
        pytest.param([9, 0, 0, 0], [1, 0, 0, 0], False, id="stop token first"),
        pytest.param([1, 2, 3, 9], [1, 1, 1, 1], False, id="stop token last"),
        pytest.param([1, 9, 0, 0], [1, 1, 0, 0], False, id="padded"),
        pytest.param([1, 9, 9, 9], [1, 1, 0, 0], False, id="pad = stop token"),
        pytest.param([1, 0, 9, 0], [1, 1, 1, 0], False, id="pad id inside a response"),
    ],
)
@pytest.mark.parametrize("prompt", [[0, 5], [9, 9]], ids=["plain", "of stop tokens"])
def test_response_mask(prompt, response, emitted, truncated):
    tokens = jnp.array([prompt + response])
    mask, was_truncated = response_mask(tokens, start=2, stop_ids=(9,))
    assert mask.astype(int).tolist() == [[0, 0] + emitted]
    assert was_truncated.tolist() == [truncated]


def test_stop_ids_count_from_stop_after_on():
    tokens = jnp.array([[5, 9, 1, 9, 1], [5, 1, 1, 9, 9], [5, 9, 9, 1, 1]])
    mask, truncated = response_mask(tokens, start=1, stop_ids=(9,), stop_after=2)
    assert mask.astype(int).tolist() == [
        [0, 1, 1, 1, 0],  # the stop at index 0 does not count, that at index 2 does
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],  # neither of index 0 and 1 counts
    ]
    assert truncated.tolist() == [False, False, True]


@pytest.mark.fault(18)
def test_without_stop_ids_the_budget_ends_the_response():
    mask, truncated = response_mask(jnp.array([[5, 9, 9]]), start=1, stop_ids=())
    assert mask.tolist() == [[False, True, True]]
    assert truncated.tolist() == [True]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    response=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    stop_after=st.integers(0, 5),
)
def test_response_mask_equals_generating_token_by_token(response, stop_after):
    emitted, stopped = [], False
    for index, token in enumerate(response):
        emitted.append(not stopped)
        stopped |= token in (3, 4) and index >= stop_after
    tokens = jnp.array([[4, *response]])
    mask, truncated = response_mask(
        tokens, start=1, stop_ids=(3, 4), stop_after=stop_after
    )
    assert mask.tolist() == [[False, *emitted]]
    assert truncated.tolist() == [not stopped]


@pytest.mark.fault(19)
def test_is_stop_takes_several_ids_and_one_index_a_row():
    tokens, index = jnp.array([7, 8, 9, 8]), jnp.array([0, 0, 5, 5])
    stops = is_stop(tokens, index, (8, 9), stop_after=1)
    assert stops.tolist() == [False, False, True, True]
