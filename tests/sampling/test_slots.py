"""Slots: a queue of prompts through few rows of a ring, told apart by nothing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from models.tiny import quick_jit, randomize
from sampling.scripted import prompts_of
from sampling.test_transformer import assert_same

from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.ops.logprobs import token_logprobs
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.types import ModelOutput, Rollout, TokenBatch

PROMPTS, WIDTH, BUDGET = 29, 6, 10  # 29: a multiple of no slots and no read_ahead
COLUMNS = WIDTH + BUDGET  # of the ring
EMPTY = 7  # a row without a prompt, in the midst of the queue
ROTARY = TransformerConfig(
    vocab_size=23,
    d_model=16,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    d_head=4,
    d_ff=24,
    max_length=COLUMNS,
)
MODELS = {
    "rotary": ROTARY,
    "learned": dataclasses.replace(
        ROTARY, n_layers=2, positions="learned", window=3, local_layers=(0,)
    ),
}
SAMPLING = functools.partial(
    SamplingConfig, BUDGET, temperature=0.9, stop_ids=(3, 5, 11, 17), pad_id=5
)
draw = quick_jit(generate, static_argnums=0, static_argnames=("config", "report"))


@functools.cache
def apply_of(model):
    """Jitted, so that programs of the same shapes share what is traced."""
    return jax.jit(policy_apply(MODELS[model]), static_argnames="cache_size")


@functools.cache
def params_of(model):
    init = lambda key: init_params(CausalLM(MODELS[model]), key=key)
    params = randomize(quick_jit(init)(jax.random.key(1)))
    return jax.tree.map(lambda x: 0.7 * x, params)


def ragged_prompts(seed=0) -> TokenBatch:
    """29 rows of 6 columns, 1 to 6 of them real, none in one row."""
    rng = np.random.default_rng(seed)
    real = np.arange(WIDTH)[None] >= rng.integers(0, WIDTH, PROMPTS)[:, None]
    real[EMPTY] = False
    return TokenBatch(
        tokens=jnp.asarray(rng.integers(0, 23, real.shape), jnp.int32),
        segment_ids=jnp.asarray(real, jnp.int32),
        positions=jnp.maximum(jnp.cumsum(jnp.asarray(real), axis=1) - 1, 0),
        mask=jnp.zeros(real.shape, bool),
    )


ROWS = (3 * np.arange(PROMPTS, dtype=np.int32) + 100)[::-1]  # global, not in order


@functools.cache
def drawn(model="rotary", **options) -> Rollout:
    return draw(
        apply_of(model),
        params_of(model),
        ragged_prompts(),
        key=jax.random.key(0),
        config=SAMPLING(**options),
        rows=jnp.asarray(ROWS),
    )


def test_the_lengths_of_the_reference_differ_widely():
    """What the other tests compare with: all lengths, some truncated, one row empty."""
    whole = drawn()
    lengths = np.asarray(whole.batch.mask.sum(axis=1))
    assert lengths[EMPTY] == 0 and not whole.truncated[EMPTY]
    answered = np.delete(lengths, EMPTY)
    assert len(set(answered.tolist())) >= 7
    assert answered.min() == 1 and answered.max() == BUDGET
    assert 2 <= whole.truncated.sum() <= PROMPTS // 2


@pytest.mark.parametrize(
    "slots, read_ahead, stages",
    [(29, 2, 2), (5, 1, 1), (5, 3, 3), (3, 1, 1), (3, 2, 4), (1, 1, 2)],
)
def test_slots_change_no_token(slots, read_ahead, stages):
    """The order is that of the prompts, and the rows are those that were given.

    A step draws at most one token a slot and fills one column of the ring, so that
    there are at least tokens / slots columns: with 3 slots or 1, it goes round more
    than twice.
    """
    whole = drawn()
    found = drawn(slots=slots, read_ahead=read_ahead, stages=stages)
    assert_same(found, whole)
    assert found.row.tolist() == ROWS.tolist()
    tokens = int(whole.batch.mask.sum())
    assert slots > 3 or tokens / slots > 2 * COLUMNS


def test_slots_change_no_token_of_learned_positions_and_windows():
    """Two layers, of which one sees 3 columns."""
    model = "learned"
    whole = drawn(model)
    assert whole.batch.mask.sum() / 3 > 2 * COLUMNS  # twice round the ring
    assert_same(drawn(model, slots=3, read_ahead=2), whole)


def test_slots_hold_all_completions_of_a_prompt():
    """3 completions in 9 slots, 2 prompts at a time: rows r·3 + k in their order."""
    whole = drawn(completions=3)
    found = drawn(completions=3, slots=9, read_ahead=2, stages=2)
    assert_same(found, whole)
    expected = (3 * ROWS[:, None] + np.arange(3)).ravel()
    assert found.row.tolist() == expected.tolist()
    assert whole.batch.mask.sum() / 9 > 2 * COLUMNS


def test_prompts_of_one_token_leave_nothing_to_prefill():
    last = jax.tree.map(lambda x: x[:, -1:], ragged_prompts())
    each = lambda **options: draw(
        apply_of("rotary"),
        params_of("rotary"),
        last,
        key=jax.random.key(0),
        config=SAMPLING(**options),
    )
    assert_same(each(slots=3, read_ahead=2), each())


@pytest.mark.parametrize("model", ["rotary", "learned"])
def test_logprobs_are_those_of_the_training_forward(model):
    rollout = drawn(model, slots=3, read_ahead=2)
    batch = rollout.batch
    logits = quick_jit(apply_of(model))(params_of(model), batch).logits
    expected = token_logprobs(logits, batch.tokens, temperature=0.9)
    assert jnp.abs(rollout.logprobs - expected)[batch.mask].max() < 1e-5
    assert (rollout.logprobs[~batch.mask] == 0).all()
    assert expected[batch.mask].std() > 0.1


@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_gets_the_same_tokens(devices):
    """28 of the rows, in 3 slots of each device."""
    whole = jax.tree.map(lambda x: x[:28], drawn())
    run = jax.pmap(
        lambda params, prompts, key, rows: generate(
            apply_of("rotary"),
            params,
            prompts,
            key=key,
            config=SAMPLING(slots=3, read_ahead=2),
            rows=rows,
        ),
        in_axes=(None, 0, None, 0),
        devices=jax.devices()[:devices],
    )
    split = lambda x: x[:28].reshape(devices, -1, *x.shape[1:])
    prompts, rows = jax.tree.map(split, (ragged_prompts(), jnp.asarray(ROWS)))
    rollout = run(params_of("rotary"), prompts, jax.random.key(0), rows)
    assert_same(jax.tree.map(lambda x: x.reshape(28, *x.shape[2:]), rollout), whole)


def test_compiles_once_for_all_prompts_of_a_width():
    @quick_jit
    @chex.assert_max_traces(n=1)
    def run(params, prompts, key):
        config = SAMPLING(slots=3, read_ahead=2)
        return generate(apply_of("rotary"), params, prompts, key=key, config=config)

    seen = set()
    for seed in range(10):
        prompts = ragged_prompts(seed)
        mask = run(params_of("rotary"), prompts, jax.random.key(seed)).batch.mask
        seen.add((int(prompts.segment_ids.sum()), int(mask.sum())))
    assert len(seen) == 10


@struct.dataclass
class NoCache:
    """Of a policy that only looks at the token that it reads."""

    def insert(self, fresh, rows):
        return self

    def take(self, rows):
        return self


def countdown(params, batch: TokenBatch, *, cache=None, cache_size=None):
    """After token v surely v − 1: with 0 to stop, v tokens are drawn."""
    cache = NoCache() if cache_size is not None else cache
    return ModelOutput(100.0 * jax.nn.one_hot(batch.tokens - 1, 48), cache=cache)


def _count_down(lengths, apply_fn=countdown, report=None, **options):
    prompts = prompts_of([[0, 1]] * len(lengths))
    tokens = prompts.tokens.at[:, 1].set(jnp.array(lengths))
    prompts = dataclasses.replace(prompts, tokens=tokens)
    config = SamplingConfig(max(lengths), stop_ids=(0,), **options)
    rollout = draw(
        apply_fn, {}, prompts, key=jax.random.key(0), config=config, report=report
    )
    jax.block_until_ready(rollout)
    jax.effects_barrier()
    assert rollout.batch.mask.sum(axis=1).tolist() == lengths
    return rollout


@pytest.mark.parametrize(
    "options, steps, reads",
    [
        ({}, 5, 1),  # the longest
        ({"slots": 2}, 9, 5),
        ({"slots": 2, "read_ahead": 3}, 9, 3),
        ({"slots": 1}, 16, 6),  # all tokens
        ({"slots": 4, "read_ahead": 3}, 5, 2),
    ],
)
def test_steps_by_hand(options, steps, reads):
    """Lengths 5 1 1 3 2 4: 16 tokens, 8 steps at the least with two slots.

    Two slots: row 0 in steps 1–5, beside it rows 1 (1), 2 (2) and 3 (3–5); both are
    free and filled one after the other, by rows 4 (6–7) and 5 (6–9). Four slots: rows 4
    and 5 take the places of 1 and 2 in step 2. How many are read together only tells
    how often something is read.
    """
    calls = {"decode": 0, "prefill": 0}

    def count(kind):
        calls[kind] += 1

    def counting(params, batch, **cache):
        kind = "decode" if "cache" in cache else "prefill"
        jax.debug.callback(functools.partial(count, kind))
        return countdown(params, batch, **cache)

    _count_down([5, 1, 1, 3, 2, 4], counting, **options)
    assert calls == {"decode": steps, "prefill": reads}


def test_report_by_hand():
    """Lengths 20 10 30 4 in two slots: rows 0, 3 in steps 1–20, 21–24; 1, 2 in 1–40.

    Before step 16: 2 · 16 tokens, row 1 has ended. Before step 32 also rows 0 and 3:
    20 + 10 + 22 + 4 tokens.
    """
    seen = []
    record = lambda **counts: seen.append({k: int(v) for k, v in counts.items()})
    _count_down([20, 10, 30, 4], report=record, slots=2)
    same = {"source": 0, "slots": 2, "rows": 4, "budget": 30}
    assert sorted(seen, key=lambda counts: counts["step"]) == [
        same | {"step": 0, "tokens": 0, "busy": 2, "ended": 0},
        same | {"step": 16, "tokens": 32, "busy": 2, "ended": 1},
        same | {"step": 32, "tokens": 56, "busy": 1, "ended": 3},
    ]


def test_free_slots_are_dropped_at_the_end():
    """Lengths 33 1 17 2 1 in four slots, three stages.

    Row 4 takes the place of row 1, and the queue is empty. After step 2 rows 0 and 2
    run, in two slots from then on; after step 17 row 0 alone, in one.
    """
    seen = []
    record = lambda **counts: seen.append({k: int(v) for k, v in counts.items()})
    _count_down([33, 1, 17, 2, 1], report=record, slots=4, stages=3)
    found = [(s["step"], s["slots"], s["busy"]) for s in seen]
    assert sorted(found) == [(0, 4, 4), (16, 2, 2), (32, 1, 1)]


def test_nobody_is_called_without_a_report():
    def program(report):
        run = lambda prompts: generate(
            countdown,
            {},
            prompts,
            key=jax.random.key(0),
            config=SamplingConfig(4, slots=2),
            report=report,
        )
        return str(jax.make_jaxpr(run)(prompts_of([[1, 1]] * 4)))

    assert "callback" in program(lambda **counts: None)
    assert "callback" not in program(None)


def test_slots_must_hold_whole_groups():
    with pytest.raises(UserError, match="slots=5: set it to a multiple of completio"):
        drawn(completions=2, slots=5)
    with pytest.raises(UserError, match="slots=3: set it to completions = 4"):
        SAMPLING(completions=4, slots=3)
    assert SAMPLING(completions=2, read_ahead=9, slots=4).slots == 4
