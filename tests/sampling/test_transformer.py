"""Sampling and training see the same policy, whatever the split of the batch."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import randomize
from sampling.scripted import sample

from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.ops.logprobs import token_logprobs
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.types import TokenBatch

CONFIG = TransformerConfig(
    vocab_size=23,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=4,
    d_ff=24,
    max_length=14,
)
APPLY = policy_apply(CONFIG)
SAMPLING = SamplingConfig(max_new_tokens=8, temperature=0.7, stop_ids=(3, 5), pad_id=5)


@pytest.fixture(scope="module")
def params():
    return randomize(init_params(CausalLM(CONFIG), key=jax.random.key(1)))


@pytest.fixture(scope="module")
def prompts() -> TokenBatch:
    """16 rows of 6 columns, 1 to 6 of them real."""
    real = np.arange(6)[None] >= 5 - np.arange(16)[:, None] % 6
    tokens = np.random.default_rng(0).integers(0, 23, real.shape)
    return TokenBatch(
        tokens=jnp.asarray(tokens, jnp.int32),
        segment_ids=jnp.asarray(real, jnp.int32),
        positions=jnp.maximum(jnp.cumsum(jnp.asarray(real), axis=1) - 1, 0),
        mask=jnp.zeros(real.shape, bool),
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 5, "min_p": 0.01}])
def test_logprobs_are_those_of_the_training_forward(
    params, prompts, key, temperature, truncation
):
    config = dataclasses.replace(SAMPLING, temperature=temperature, **truncation)
    rollout = sample(APPLY, params, prompts, key=key, config=config)
    batch = rollout.batch
    assert 0 < rollout.truncated.sum() < 16  # some rows end early, some do not
    logits = jax.jit(APPLY)(params, batch).logits
    expected = token_logprobs(logits, batch.tokens, temperature=temperature)
    error = jnp.abs(rollout.logprobs - expected)[batch.mask]
    assert error.max() < 1e-5
    assert (rollout.logprobs[~batch.mask] == 0).all()
    assert expected[batch.mask].std() > 0.1


def test_greedy_is_the_argmax_of_the_full_forward(params, prompts, key):
    config = SamplingConfig(max_new_tokens=8, top_k=1)
    batch = sample(APPLY, params, prompts, key=key, config=config).batch
    best = jnp.argmax(jax.jit(APPLY)(params, batch).logits[:, 5:-1], axis=-1)
    np.testing.assert_array_equal(batch.tokens[:, 6:], best)
    assert len(np.unique(best)) > 3


def test_what_stands_under_padding_changes_nothing(params, prompts, key):
    real = prompts.segment_ids > 0
    dirty = dataclasses.replace(
        prompts,
        tokens=jnp.where(real, prompts.tokens, 21),
        positions=jnp.where(real, prompts.positions, -9),
        mask=~prompts.mask,
    )
    clean = sample(APPLY, params, prompts, key=key, config=SAMPLING)
    other = sample(APPLY, params, dirty, key=key, config=SAMPLING)
    tokens = jnp.where(real, other.batch.tokens[:, :6], prompts.tokens)
    tokens = other.batch.tokens.at[:, :6].set(tokens)
    other = dataclasses.replace(
        other, batch=dataclasses.replace(other.batch, tokens=tokens)
    )
    chex.assert_trees_all_equal(other, clean)


def test_halves_of_the_batch_get_the_tokens_of_the_whole(params, prompts, key):
    whole = sample(APPLY, params, prompts, key=key, config=SAMPLING)
    for half in (slice(0, 8), slice(8, 16)):
        part = jax.tree.map(lambda x, half=half: x[half], prompts)
        rows = jnp.arange(16, dtype=jnp.int32)[half]
        rollout = sample(APPLY, params, part, key=key, config=SAMPLING, rows=rows)
        assert_same(rollout, jax.tree.map(lambda x, half=half: x[half], whole))


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gets_the_same_tokens(params, prompts, key, devices):
    whole = sample(APPLY, params, prompts, key=key, config=SAMPLING)
    draw = jax.pmap(
        lambda params, prompts, key, rows: generate(
            APPLY, params, prompts, key=key, config=SAMPLING, rows=rows
        ),
        in_axes=(None, 0, None, 0),
        devices=jax.devices()[:devices],
    )
    rows = jnp.arange(16, dtype=jnp.int32)
    split = lambda x: x.reshape(devices, -1, *x.shape[1:])
    rollout = draw(params, jax.tree.map(split, prompts), key, split(rows))
    assert_same(jax.tree.map(lambda x: x.reshape(16, *x.shape[2:]), rollout), whole)


LOGPROBS = ("logprobs", "raw_logprobs", "processed_logprobs")


def assert_same(rollout, expected):
    """Everything to the bit, log-probs to the rounding of another batch size."""
    for name in LOGPROBS:
        found, wanted = getattr(rollout, name), getattr(expected, name)
        chex.assert_trees_all_close(found, wanted, atol=1e-5)
    zeros = lambda r: dataclasses.replace(r, **dict.fromkeys(LOGPROBS, jnp.zeros(())))
    chex.assert_trees_all_equal(zeros(rollout), zeros(expected))


def test_prompt_logits_are_never_computed(params, prompts, key):
    """[16, 5, 23] logits of the context would dwarf the rest at a real vocabulary."""
    draw = lambda params, prompts: generate(
        APPLY, params, prompts, key=key, config=SAMPLING
    )
    program = lambda f, *args: str(jax.jit(f).lower(*args).compile().as_text())
    shapes = ["[16,5,23]", "[80,23]"]
    context = jax.tree.map(lambda x: x[:, :-1], prompts)
    assert any(shape in program(APPLY, params, context) for shape in shapes)
    assert not any(shape in program(draw, params, prompts) for shape in shapes)


def test_no_step_copies_the_cache(params, prompts, key):
    """Copies of keys or values come before the loop or not at all."""
    program = sample.lower(APPLY, params, prompts, key=key, config=SAMPLING)
    loops, entry = str(program.compile().as_text()).split("\nENTRY ")
    for cache in ("f32[16,2,4,14]", "f32[16,2,14,4]"):
        assert cache in loops and cache in entry
        lines = [x for x in loops.splitlines() if f" = {cache}" in x]
        assert not [x for x in lines if " copy(" in x]


def test_a_response_that_exceeds_the_context_is_refused(params, prompts, key):
    config = SamplingConfig(max_new_tokens=9)
    with pytest.raises(ValueError, match="rows of 15 slots exceed max_length=14"):
        generate(APPLY, params, prompts, key=key, config=config)
