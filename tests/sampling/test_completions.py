"""Several responses to a prompt that is read once, whole or in chunks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import quick_jit
from sampling.test_slots import (
    BUDGET,
    COLUMNS,
    PROMPTS,
    ROWS,
    SAMPLING,
    WIDTH,
    apply_of,
    draw,
    drawn,
    params_of,
    ragged_prompts,
)
from sampling.test_transformer import assert_same

from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.sampling.prefill import prefill


def _repeated(model, times):
    """The rollout of every prompt ``times`` times, by hand: rows r·K + k."""
    repeat = lambda x: jnp.repeat(x, times, axis=0)
    return draw(
        apply_of(model),
        params_of(model),
        jax.tree.map(repeat, ragged_prompts()),
        key=jax.random.key(0),
        config=SAMPLING(),
        rows=jnp.asarray((times * ROWS[:, None] + np.arange(times)).ravel()),
    )


@pytest.mark.parametrize("model", ["rotary", "learned"])
@pytest.mark.parametrize("options", [{}, {"stages": 2}, {"slots": 6}])
def test_completions_are_the_prompt_repeated(model, options):
    times = 3
    found = drawn(model, completions=times, **options)
    assert_same(found, _repeated(model, times))
    assert found.row[:times].tolist() == [
        times * int(ROWS[0]) + k for k in range(times)
    ]
    answers = np.asarray(found.batch.tokens)[:, WIDTH:].reshape(PROMPTS, times, -1)
    differ = (answers[:, 0] != answers[:, 1]).any(axis=1)
    assert differ.sum() > PROMPTS // 2  # completions are not copies of one


@pytest.mark.parametrize("slots, expected", [(None, [PROMPTS]), (6, [2, 1])])
def test_a_prompt_is_read_once(slots, expected):
    """Rows of the reads in the program: all prompts; or 2 at the start, then 1 each."""
    reads, steps = [], set()

    def watching(params, batch, *, cache=None, cache_size=None):
        if cache is None:
            reads.append(batch.tokens.shape)
        else:
            steps.add(batch.tokens.shape)
        return apply_of("rotary")(params, batch, cache=cache, cache_size=cache_size)

    config = SAMPLING(completions=3, slots=slots)
    run = lambda params, prompts, key: generate(
        watching, params, prompts, key=key, config=config
    )
    jax.eval_shape(run, params_of("rotary"), ragged_prompts(), jax.random.key(0))
    assert sorted(set(reads), reverse=True) == [(n, WIDTH - 1) for n in expected]
    assert steps == {(slots or 3 * PROMPTS, 1)}


@pytest.mark.parametrize(
    "model, options",
    [
        ("rotary", {"prefill_chunk": 1}),
        ("rotary", {"prefill_chunk": 2}),  # 5 columns: 2 · 3, the first of padding
        ("rotary", {"prefill_chunk": 3}),
        ("rotary", {"prefill_chunk": 9}),
        ("rotary", {"prefill_chunk": 2, "slots": 3, "read_ahead": 2}),
        ("learned", {"prefill_chunk": 2, "slots": 3, "read_ahead": 2}),
    ],
)
def test_chunks_change_no_token(model, options):
    assert_same(drawn(model, **options), drawn(model))


def test_chunks_change_no_token_of_several_completions():
    options = {"completions": 3, "prefill_chunk": 2, "slots": 6, "read_ahead": 2}
    assert_same(drawn(**options), drawn(completions=3))


def test_a_prompt_is_held_once():
    """29 prompts of 5 columns, 3 completions: 87 rows have room for their own alone."""
    draw_it = lambda **options: draw.lower(
        apply_of("rotary"),
        params_of("rotary"),
        ragged_prompts(),
        key=jax.random.key(0),
        config=SAMPLING(completions=3, **options),
    )
    keys = lambda rows, columns: f"f32[{rows},2,4,{columns}]"
    program = str(draw_it().compile().as_text())
    assert keys(PROMPTS, WIDTH - 1) in program
    assert keys(3 * PROMPTS, BUDGET + 1) in program
    assert keys(3 * PROMPTS, COLUMNS) not in program


def test_chunks_never_hold_the_activations_of_a_prompt():
    """Float32 arrays of 29·5 tokens, or of 29·6 with the padding of chunks of 2."""
    tokens = rf"f32\[{PROMPTS},[56],[0-9,]+\]|f32\[({PROMPTS * 5}|{PROMPTS * 6}),"

    def program(chunk):
        read = lambda params, prompts: prefill(
            apply_of("rotary"), params, prompts, columns=WIDTH + BUDGET, chunk=chunk
        )
        lowered = quick_jit(read).lower(params_of("rotary"), ragged_prompts())
        return str(lowered.compile().as_text())

    assert re.search(tokens, program(None))
    text = program(2)
    assert re.search(rf"f32\[{PROMPTS},2,[0-9,]+\]|f32\[{PROMPTS * 2},", text)
    assert not re.search(tokens, text)


def test_padding_of_chunks_does_not_count_against_the_context():
    """15 prompt columns and 1 token in 16: 14 that are read make 2 chunks of 9, 18."""
    prompts = jax.tree.map(lambda x: jnp.pad(x[:4], ((0, 0), (9, 0))), ragged_prompts())
    each = lambda chunk: draw(
        apply_of("rotary"),
        params_of("rotary"),
        prompts,
        key=jax.random.key(0),
        config=SamplingConfig(1, prefill_chunk=chunk),
    )
    assert_same(each(9), each(None))


@pytest.mark.parametrize("stages, chunk", [(2, None), (3, 2), (BUDGET, None)])
def test_a_cache_that_grows_changes_nothing(stages, chunk):
    assert_same(drawn(stages=stages, prefill_chunk=chunk), drawn())


def test_a_cache_that_grows_reads_less():
    """10 tokens in 2 stages: keys of 6 + 5 columns in one loop, 6 + 10 in the other."""
    draw_it = lambda stages: draw.lower(
        apply_of("rotary"),
        params_of("rotary"),
        ragged_prompts(),
        key=jax.random.key(0),
        config=SAMPLING(stages=stages),
    )
    keys = lambda columns: f"f32[{PROMPTS},2,4,{columns}]"
    program = str(draw_it(2).compile().as_text())
    assert keys(WIDTH + 5) in program and keys(COLUMNS) in program
    assert keys(WIDTH + 5) not in str(draw_it(1).compile().as_text())
