"""Numbers derived by hand; oracle, gradients and laws are in test_laws.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import (
    length_desensitized_logps,
    on_policy_weight,
    token_log_collision,
)

MASK = jnp.array([[False, True, True, False, True]])  # a hole


def test_tokens_beyond_the_common_length_count_for_less():
    # Three tokens, the second and third of weight α beside a side of one token.
    logprobs = jnp.array([[jnp.nan, -1.0, -2.0, jnp.nan, -4.0]])
    of = lambda n: length_desensitized_logps(
        logprobs, MASK, jnp.arange(9)[None] < n, alpha=0.25
    )
    assert [of(n).item() for n in (0, 1, 2, 3, 9)] == [-1.75, -2.5, -4.0, -7.0, -7.0]


@pytest.mark.parametrize("alpha, expected", [(1.0, -7.0), (0.0, -1.0)])
def test_alpha_1_is_the_sum(alpha, expected):
    logprobs = jnp.array([[0.0, -1.0, -2.0, 0.0, -4.0]])
    got = length_desensitized_logps(logprobs, MASK, MASK[:, :2], alpha=alpha)
    assert got.item() == expected


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_checked(alpha):
    with pytest.raises(ValueError, match=f"alpha = {alpha}, expected between 0 and 1"):
        length_desensitized_logps(jnp.zeros((1, 5)), MASK, MASK, alpha=alpha)


def test_weight_by_hand():
    # ⅛, ½, ½ where draws agree with chance ½, ½, ¼: ratios ¼, 1, 2; their geometric
    # mean is 2^(−⅓).
    logprobs = jnp.log(jnp.array([[9.0, 1 / 8, 1 / 2, 9.0, 1 / 2]]))
    collision = jnp.log(jnp.array([[9.0, 1 / 2, 1 / 2, 9.0, 1 / 4]]))
    weight = on_policy_weight(logprobs, collision, MASK)
    np.testing.assert_allclose(weight, [2 ** (-1 / 3)], rtol=1e-6)
    total = lambda x: on_policy_weight(x, collision, MASK).sum()
    assert not np.any(jax.grad(total)(logprobs))


def test_collision_by_hand():
    # ½, ¼, ¼: ¼ + 1/16 + 1/16 = 3/8; at temperature ½, ⅔, ⅙, ⅙: ½.
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25]] * 2]))
    at = lambda tau: token_log_collision(logits, temperature=tau)[0]
    np.testing.assert_allclose(at(1.0), [0, np.log(3 / 8)], rtol=1e-6)
    np.testing.assert_allclose(at(0.5), [0, np.log(1 / 2)], rtol=1e-6)
    with pytest.raises(ValueError, match="temperature"):
        at(0.0)


def test_a_token_that_cannot_be_drawn_does_not_collide():
    logits = jnp.array([[[0.0, 0.0, -jnp.inf]] * 2])
    np.testing.assert_allclose(token_log_collision(logits)[0, 1], np.log(1 / 2))
