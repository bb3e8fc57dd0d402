"""Where responses begin and end, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling.scripted import constant, prompts_of, sample, script

from rlhf_jax.sampling import SamplingConfig, generate


@pytest.mark.fault(17)
def test_ends_by_hand(key):
    """Stop id first, last, never, and the second of two ids; pad = a stop id.

    Prompts of length 1 and 2: position t of a row reads the script's entry t, so the
    response starts at entry length − 1.
    """
    prompts = prompts_of([[0, 1], [1, 1], [1, 1], [0, 1]])
    lines = jnp.array(
        [
            [2, 5, 5, 5, 0],
            [0, 5, 6, 5, 2],
            [0, 5, 6, 7, 8],
            [6, 3, 5, 5, 0],
        ]
    )
    config = SamplingConfig(max_new_tokens=4, stop_ids=(2, 3), pad_id=2)
    rollout = sample(script, lines, prompts, key=key, config=config)
    given = np.asarray(prompts.tokens)
    assert rollout.batch.tokens[:, :2].tolist() == given.tolist()
    assert rollout.batch.tokens[:, 2:].tolist() == [
        [2, 2, 2, 2],
        [5, 6, 5, 2],
        [5, 6, 7, 8],
        [6, 3, 2, 2],
    ]
    assert rollout.batch.segment_ids.tolist() == [
        [0, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0, 0],
    ]
    assert rollout.batch.mask.astype(int).tolist() == [
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0],
    ]
    real = np.asarray(rollout.batch.segment_ids) > 0
    positions = [[0, 0, 1], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 0, 1, 2]]
    for row, expected in enumerate(positions):
        stop = len(expected)
        assert rollout.batch.positions[row, :stop].tolist() == expected
        assert not real[row, stop:].any()
    assert rollout.truncated.tolist() == [False, False, True, False]
    assert rollout.row.tolist() == [0, 1, 2, 3]
    assert rollout.batch.tokens.dtype == rollout.batch.positions.dtype == jnp.int32
    assert rollout.logprobs.dtype == jnp.float32
    assert rollout.truncated.dtype == bool


@pytest.mark.fault(19)
def test_stop_ids_count_from_stop_after(key):
    lines = jnp.array([[2, 2, 5, 5], [2, 5, 2, 5]])
    config = SamplingConfig(max_new_tokens=4, stop_ids=(2,), stop_after=1, pad_id=9)
    rollout = sample(script, lines, prompts_of([[1], [1]]), key=key, config=config)
    assert rollout.batch.tokens[:, 1:].tolist() == [[2, 2, 9, 9], [2, 5, 2, 9]]
    assert rollout.batch.mask.sum(axis=1).tolist() == [2, 3]
    assert rollout.truncated.tolist() == [False, False]


@pytest.mark.fault(18)
def test_no_stop_id_spends_the_budget(key):
    rollout = sample(
        script,
        jnp.zeros((2, 4), jnp.int32),
        prompts_of([[1], [1]]),
        key=key,
        config=SamplingConfig(max_new_tokens=4),
    )
    assert rollout.truncated.all() and rollout.batch.mask[:, 1:].all()
    assert (rollout.batch.segment_ids == 1).all()  # 0 is the pad id and a token


@pytest.mark.parametrize("ends, steps", [([2, 5, 5, 5], 1), ([5, 5, 2, 5], 3)])
def test_the_loop_ends_with_the_last_row(key, ends, steps):
    """Every call reports how many tokens the cache holds: 2 before the loop."""
    seen = []

    def reporting(params, batch, **cache):
        output = script(params, batch, **cache)
        jax.debug.callback(lambda n: seen.append(int(n)), output.cache)
        return output

    lines = jnp.array([[0, 0, *ends], [0, 0, 2, 5, 5, 5]])
    config = SamplingConfig(max_new_tokens=4, stop_ids=(2,))
    run = jax.jit(functools.partial(generate, reporting), static_argnames="config")
    prompts = prompts_of([[1, 1, 1], [1, 1, 1]])
    jax.block_until_ready(run(lines, prompts, key=key, config=config))
    jax.effects_barrier()
    assert sorted(seen) == list(range(2, 3 + steps))


def test_the_last_token_is_not_fed_back(key):
    """Prompt of 3 and 4 new tokens: the policy reads 6 of the 7."""
    seen = []

    def reporting(params, batch, **cache):
        output = constant(params, batch, **cache)
        jax.debug.callback(lambda n: seen.append(int(n)), output.cache)
        return output

    config = SamplingConfig(max_new_tokens=4)
    generate(reporting, jnp.zeros(3), prompts_of([[1, 1, 1]]), key=key, config=config)
    jax.effects_barrier()
    assert max(seen) == 6


@pytest.mark.fault(17)
def test_a_row_without_a_prompt_stays_empty(key):
    config = SamplingConfig(max_new_tokens=3, stop_ids=(2,), pad_id=4)
    run = lambda segments, rows: sample(
        constant,
        jnp.zeros(5),
        prompts_of(segments),
        key=key,
        config=config,
        rows=jnp.array(rows),
    )
    filled = run([[1, 1], [0, 0]], [7, 8])
    assert filled.batch.tokens[1, 2:].tolist() == [4, 4, 4]
    assert not filled.batch.mask[1].any() and not filled.batch.segment_ids[1].any()
    assert not filled.truncated[1] and (filled.logprobs[1] == 0).all()
    alone = run([[1, 1]], [7])
    for a, b in zip(jax.tree.leaves(filled), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a[:1], b)


def test_prompts_without_a_column_are_refused(key):
    empty = prompts_of([[1], [1]])
    empty = jax.tree.map(lambda x: x[:, :0], empty)
    with pytest.raises(ValueError, match=r"prompts are \[B, 0\]"):
        generate(
            constant,
            jnp.zeros(3),
            empty,
            key=key,
            config=SamplingConfig(max_new_tokens=1),
        )
