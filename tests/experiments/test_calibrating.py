"""What calibration.json is made from: how much more the preferred side gets."""

import jax
import jax.numpy as jnp

from experiments.calibrating import held_out_differences
from rlhf_jax.data.batching import right_padded
from rlhf_jax.types import PreferenceBatch, TokenBatch

OUTPUTS = jnp.array([[0.0, 0.0], [1.0, 4.0], [0.5, 1.0], [3.0, 2.0]])  # by last token


def score_fn(params, batch: TokenBatch, *, at: jax.Array | None = None) -> jax.Array:
    del params
    assert at is not None
    return OUTPUTS[jnp.take_along_axis(jnp.asarray(batch.tokens), at, axis=1)]


def rows(last: list[int]) -> TokenBatch:
    ended = [(token,) for token in last]
    return right_padded([(1,)] * len(last), ended, length=3, pad_id=0)


def test_pairs_are_scored_by_the_reward_of_who_judged():
    judged = PreferenceBatch(
        chosen=rows([1, 1, 1]),
        rejected=rows([2, 2, 2]),
        margin=jnp.zeros(3),
        weight=jnp.array([1.0, 1.0, 0.0]),
        annotator=jnp.array([0, -1, 1]),
    )
    params = {"users": jnp.array([[2.0], [-1.0]])}
    found, there = held_out_differences(params, judged, None, score_fn=score_fn)
    assert found.tolist() == [0.5 + 2 * 3, 0.5, 0.5 - 3]  # −1 has the pooled score
    assert there.tolist() == [True, True, False]
    alike = {"users": jnp.zeros((2, 1))}
    pooled, _ = held_out_differences(alike, judged, None, score_fn=score_fn)
    assert pooled.tolist() == [0.5, 0.5, 0.5]


def test_a_label_is_a_pair_with_the_other_label():
    judged = rows([1, 1, 3, 3]), jnp.array([1, 0, 0, -1])
    found, there = held_out_differences({}, judged, None, score_fn=score_fn)
    assert found[:3].tolist() == [3.0, -3.0, 1.0]  # logits of bad and good
    assert there.tolist() == [True, True, True, False]
