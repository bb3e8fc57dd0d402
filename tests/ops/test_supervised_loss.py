import jax.numpy as jnp
import pytest

from rlhf_jax.ops import supervised_loss


def test_by_hand():
    logprobs = jnp.array([[0.0, -1.0, -3.0], [0.0, -2.0, jnp.nan]])
    mask = jnp.array([[False, True, True], [False, True, False]])
    terms, metrics = supervised_loss(logprobs, mask)
    assert terms.tolist() == [[0.0, 1.0, 3.0], [0.0, 2.0, 0.0]]
    assert metrics.compute() == {"sft/loss": 2.0}  # 6 nats over 3 tokens


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        supervised_loss(jnp.zeros((2, 3)), jnp.full((2, 2), True))
