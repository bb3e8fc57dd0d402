import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import distillation_loss

# At the last of two tokens: student (½, ½), teacher (¼, ¾).
STUDENT = jnp.zeros((1, 2, 2))
TEACHER = jnp.log(jnp.array([[[1.0, 3.0], [9.0, 1.0]]]))
MASK = jnp.array([[True, True]])
FORWARD = np.log(1 / 2) / 4 + np.log(3 / 2) * 3 / 4
REVERSE = np.log(2) / 2 + np.log(2 / 3) / 2


@pytest.mark.parametrize("beta, expected", [(0.0, FORWARD), (1.0, REVERSE)])
def test_the_two_kls_by_hand(beta, expected):
    got = distillation_loss(STUDENT, TEACHER, MASK, beta=beta)
    np.testing.assert_allclose(got, [[0.0, expected]], rtol=1e-6)


def test_jensen_shannon_by_hand():
    # M = (⅜, ⅝).
    p, q, m = np.array([1, 3]) / 4, np.array([1, 1]) / 2, np.array([3, 5]) / 8
    expected = np.sum(p * np.log(p / m)) / 2 + np.sum(q * np.log(q / m)) / 2
    got = distillation_loss(STUDENT, TEACHER, MASK)
    np.testing.assert_allclose(got, [[0.0, expected]], rtol=1e-6)


@pytest.mark.parametrize("beta, limit", [(1e-3, FORWARD), (1 - 1e-3, REVERSE)])
def test_the_kls_are_limits_of_the_divergence_over_beta(beta, limit):
    got = distillation_loss(STUDENT, TEACHER, MASK, beta=beta)[0, 1]
    np.testing.assert_allclose(got / min(beta, 1 - beta), limit, rtol=5e-3)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_student_like_its_teacher_has_nothing_to_learn(beta):
    loss = lambda z: jnp.sum(distillation_loss(z, TEACHER, MASK, beta=beta))
    value, slope = jax.value_and_grad(loss)(TEACHER + 5.0)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(slope, jnp.zeros_like(slope), atol=1e-6)


def test_the_temperature_divides_both():
    got = distillation_loss(STUDENT, 2 * TEACHER, MASK, beta=0.0, temperature=2.0)
    np.testing.assert_allclose(got, [[0.0, FORWARD]], rtol=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_is_checked(beta):
    with pytest.raises(ValueError, match=f"beta = {beta}, expected 0 to 1"):
        distillation_loss(STUDENT, TEACHER, MASK, beta=beta)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        distillation_loss(STUDENT, jnp.zeros((1, 2, 3)), MASK)
