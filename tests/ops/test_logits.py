import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.ops import min_p_mask, scale_by_temperature, top_k_mask, top_p_mask

INF = float("inf")


def of_probs(*probs):
    return jnp.log(jnp.array(probs))


jitted_top_p = jax.jit(top_p_mask)


def kept(logits):
    return jnp.isfinite(logits).tolist()


def test_temperature():
    assert scale_by_temperature(jnp.array([1, -3], jnp.bfloat16), 2).tolist() == [
        0.5,
        -1.5,
    ]


def test_top_k_keeps_values_and_excludes_with_minus_inf():
    rows = jnp.array([[3.0, 1.0, 2.0], [-1.0, -2.0, -3.0]])
    assert top_k_mask(rows, 2).tolist() == [[3.0, -INF, 2.0], [-1.0, -2.0, -INF]]


def test_top_k_keeps_ties_with_the_last():
    assert kept(top_k_mask(jnp.array([1.0, 2.0, 2.0, 3.0]), 2)) == [0, 1, 1, 1]
    assert kept(top_k_mask(jnp.array([1.0, 2.0, 3.0, 3.0]), 2)) == [0, 0, 1, 1]


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_outside_the_vocabulary(k):
    with pytest.raises(ValueError, match="expected 1 … 3"):
        top_k_mask(jnp.zeros(3), k)


@pytest.mark.parametrize(
    "p, expected",
    [
        (0.1, [0, 1, 0, 0]),
        (0.5, [0, 1, 0, 0]),  # 1/2 reaches 1/2
        (0.51, [0, 1, 1, 0]),
        (0.75, [0, 1, 1, 0]),
        (0.76, [1, 1, 1, 1]),  # the last two are tied
        (1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, expected):
    assert kept(top_p_mask(of_probs(1 / 8, 1 / 2, 1 / 4, 1 / 8), p)) == expected
    traced = jitted_top_p(of_probs(1 / 8, 1 / 2, 1 / 4, 1 / 8), p)
    assert kept(traced) == expected


def test_top_p_of_1_keeps_a_tail_that_rounds_away_in_the_sum():
    logits = jnp.array([[0.0] + [-30.0] * 3])  # e⁻³⁰ = 9e-14, and 1 + 9e-14 = 1
    assert kept(top_p_mask(logits, 1.0)) == [[True] * 4]


def test_top_p_always_keeps_one():
    assert kept(top_p_mask(jnp.array([0.0, 50.0]), jnp.float32(0.0))) == [False, True]


def test_processors_compose():
    # Of 0.4, 0.3, 0.2, 0.1 top-k leaves 4/9, 3/9, 2/9. The first two reach 7/9 > 0.75,
    # where of all four the first three are needed.
    logits = of_probs(0.4, 0.3, 0.2, 0.1)
    assert kept(top_p_mask(top_k_mask(logits, 3), 0.75)) == [1, 1, 0, 0]
    assert kept(top_p_mask(logits, 0.75)) == [1, 1, 1, 0]


@pytest.mark.parametrize(
    "min_p, expected",
    [(1.0, [0, 1, 0]), (0.6, [0, 1, 0]), (0.5, [1, 1, 0]), (0.1, [1, 1, 1])],
)
def test_min_p_is_relative_to_the_most_probable(min_p, expected):
    # Powers of two: z - max is log 1, log ½ and log ¼ without rounding.
    logits = jnp.array([-1.0, 0.0, -2.0]) * np.float32(np.log(2))
    assert kept(min_p_mask(logits, min_p)) == expected


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1])
def test_probabilities_are_checked(p):
    with pytest.raises(ValueError, match="0 < p ≤ 1"):
        top_p_mask(jnp.zeros(3), p)
    with pytest.raises(ValueError, match="0 < min_p ≤ 1"):
        min_p_mask(jnp.zeros(3), p)


probs = st.lists(st.integers(1, 30), min_size=6, max_size=6, unique=True)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(weights=probs, share=st.integers(1, 99))
def test_top_p_equals_adding_up_in_order(weights, share):
    total, reached, expected = sum(weights), 0, set()
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        # Half a unit off the integers, so that rounding cannot decide.
        if 100 * reached < share * total - 50:
            expected.add(index)
            reached += weights[index]
    p = (share * total - 50) / (100 * total)
    if p <= 0:
        return
    got = kept(jitted_top_p(of_probs(*weights), p))
    assert {i for i, keep in enumerate(got) if keep} == expected
