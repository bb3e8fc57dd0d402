import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import align_to_tokens, token_entropy, token_logprobs, top_k_mask


def test_shift_by_one_column():
    assert align_to_tokens(jnp.array([[1, 2, 3], [4, 5, 6]])).tolist() == [
        [0, 1, 2],
        [0, 4, 5],
    ]


def test_shift_of_vectors_keeps_the_dtype():
    x = jnp.arange(8, dtype=jnp.bfloat16).reshape(1, 4, 2)
    shifted = align_to_tokens(x)
    assert shifted.dtype == jnp.bfloat16
    assert shifted[0].tolist() == [[0, 0], [0, 1], [2, 3], [4, 5]]


def test_logits_of_index_t_speak_about_the_token_after_t():
    # Index 0 says token 1 is 2 with probability 3/4; index 1 says all are as likely.
    # Index 2 speaks of a token that is not there.
    probs = jnp.array([[[1 / 8, 1 / 8, 3 / 4], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]]])
    tokens = jnp.array([[0, 2, 1]])
    got = token_logprobs(jnp.log(probs), tokens)
    np.testing.assert_allclose(got, [[0.0, np.log(3 / 4), np.log(1 / 3)]], rtol=1e-6)
    bits = 2 * np.log(8) / 8 + 3 / 4 * np.log(4 / 3)
    got = token_entropy(jnp.log(probs))
    np.testing.assert_allclose(got, [[0.0, bits, np.log(3)]], rtol=1e-6)


def test_temperature_divides_the_logits():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    tokens = jnp.array([[0, 1, 2], [4, 3, 2]])
    np.testing.assert_allclose(
        token_logprobs(logits, tokens, temperature=0.5),
        token_logprobs(2 * logits, tokens),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        token_entropy(logits, temperature=0.5), token_entropy(2 * logits), rtol=1e-5
    )


def test_temperature_may_be_traced():
    logits, tokens = jnp.arange(6.0).reshape(1, 2, 3), jnp.array([[0, 1]])
    traced = jax.jit(lambda t: token_logprobs(logits, tokens, temperature=t))(0.7)
    np.testing.assert_allclose(
        traced, token_logprobs(logits, tokens, temperature=0.7), rtol=1e-6
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="0 < temperature"):
        token_entropy(jnp.zeros((1, 2, 3)), temperature=temperature)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[[1e4, 1e4 - 1.0, -1e4], [0.0, 0.0, 0.0]]])
    log_z = np.log(1 + np.exp(-1.0))
    got = token_logprobs(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(got, [[0.0, -1 - log_z]], rtol=1e-3)
    assert np.isfinite(token_entropy(logits)).all()


def test_truncated_logits_have_entropy_and_finite_gradients():
    logits = jnp.array([[[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    truncated = lambda z: token_entropy(top_k_mask(z, 2))[0, 1]
    p = 1 / (1 + np.exp(-1.0))  # of the two that are left
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(truncated(logits), entropy, rtol=1e-6)
    # dH/dz = p (1 - p) · log((1 - p)/p) for the first, the opposite for the second.
    slope = -p * (1 - p)
    np.testing.assert_allclose(
        jax.grad(truncated)(logits)[0], [[slope, -slope, 0], [0, 0, 0]], atol=1e-6
    )


def test_ids_outside_the_vocabulary_do_not_pass_for_a_logprob():
    got = token_logprobs(jnp.zeros((1, 5, 3)), jnp.array([[0, 3, -1, -100, 2]]))
    np.testing.assert_allclose(
        got, [[0, np.nan, np.nan, np.nan, -np.log(3)]], rtol=1e-6
    )


def test_shapes_and_types_are_checked():
    with pytest.raises(AssertionError):
        token_logprobs(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3), int))
    with pytest.raises(AssertionError):
        token_logprobs(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)))
