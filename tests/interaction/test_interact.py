"""Turns of a policy and an environment: masks, log-probs, budgets, order."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit, randomize
from toys import tabular_params, tabular_policy

from rlhf_jax.data import encode_texts, left_padded, train_tokenizer
from rlhf_jax.interaction import InteractionConfig, calculator, interact, spoken
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.parallel import data_parallel, local_devices, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    PolicyConfig,
    create_policy_state,
    experience_step,
    policy_forward,
    policy_step,
    sample_step,
)
from rlhf_jax.types import ModelOutput, TokenBatch

TOKENIZER = train_tokenizer([], vocab_size=259)  # one token a byte
PAD, EOS, VOCAB = 0, 2, 259
MODEL = TransformerConfig(
    vocab_size=VOCAB,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    d_head=8,
    d_ff=32,
    max_length=64,
)


def ids(text: str) -> tuple[int, ...]:
    return encode_texts(TOKENIZER, [text])[0] if text else ()


def prompts_of(texts: list[str], length: int = 4) -> TokenBatch:
    prompts = left_padded([ids(t) for t in texts], length=length, pad_id=PAD)
    return jax.tree.map(jnp.asarray, prompts)


@functools.cache
def compiled(apply_fn):
    step = functools.partial(sample_step, apply_fn=apply_fn)
    return quick_jit(step, static_argnames="config")


def sampler(apply_fn, params):
    return functools.partial(compiled(apply_fn), params)


def recite(params, batch, *, cache=None, cache_size=None):
    """After the token at position t of row b: surely ``params[b, t + 1]``."""
    chosen = jnp.take_along_axis(params, batch.positions + 1, axis=1)
    logits = 100.0 * jax.nn.one_hot(chosen, VOCAB)
    return ModelOutput(logits, cache=0 if cache_size is not None else cache)


# By hand. What a row recites, with what the environment says in its place.
LINES = {
    "2+2=": "2+2=[2+2]4>4$",
    "hi": "hiyo$",
    "1=": "1=[1/0]error:?$",  # the answer is cut to 6 tokens
    "a": "a[1]12]",  # wants a third turn, of two
    "b": "b" + 20 * "c",  # never ends
    "[1]": "[1]x]",  # ends a turn, but not in a call
    "d": "d[3]3" + 20 * "e",  # the second turn exceeds what the first left
    "f": "f(23456789]",  # all of the budget, and ends a turn
}
EXPECTED = {  # what was said in turn, by the policy first; truncated
    "2+2=": (["[2+2]", "4", ">4$"], False),
    "hi": (["yo$"], False),
    "1=": (["[1/0]", "error:", "?$"], False),
    "a": (["[1]", "1", "2]"], True),
    "b": (["cccccccccc"], True),
    "[1]": (["x]"], False),
    "d": (["[3]", "3", "eeeeeee"], True),
    "f": (["(23456789]"], True),
}
SAMPLING = SamplingConfig(max_new_tokens=10, stop_ids=(EOS,), pad_id=PAD)
CONFIG = InteractionConfig(turn_ids=ids("]"), turns=2, env_tokens=6)


def recited(line: str) -> tuple[int, ...]:
    return tuple(EOS if x == ids("$")[0] else x for x in ids(line))


def by_hand(**changes):
    lines = list(LINES.values())
    width = 40
    params = np.full((len(lines), width), 5, np.int32)
    for row, line in enumerate(lines):
        params[row, : len(recited(line))] = recited(line)
    return interact(
        sampler(recite, jnp.asarray(params)),
        prompts_of(list(LINES)),
        calculator("[", "]"),
        TOKENIZER,
        key=jax.random.key(0),
        sampling=SAMPLING,
        config=dataclasses.replace(CONFIG, **changes),
    )


def test_turns_by_hand():
    rollout = by_hand()
    assert rollout.batch.tokens.shape == (len(LINES), 4 + 10 + 6)
    for row, (prompt, (said, truncated)) in enumerate(EXPECTED.items()):
        tokens = np.asarray(rollout.batch.tokens[row])
        expected = ids(prompt) + recited("".join(said))
        lead = 4 - len(prompt)
        whole = (PAD,) * lead + expected
        assert tuple(tokens) == whole + (PAD,) * (20 - len(whole)), prompt
        real = [0] * lead + [1] * len(expected) + [0] * (20 - len(whole))
        assert rollout.batch.segment_ids[row].tolist() == real
        mask = [0] * 4
        for turn, text in enumerate(said):
            mask += [int(turn % 2 == 0)] * len(text)
        mask += [0] * (20 - len(mask))
        assert rollout.batch.mask[row].astype(int).tolist() == mask, prompt
        assert bool(rollout.truncated[row]) is truncated, prompt
        positions = rollout.batch.positions[row, lead : len(whole)]
        assert positions.tolist() == list(range(len(expected)))
    assert rollout.row.tolist() == list(range(len(LINES)))


def test_what_was_said_in_turn():
    found = spoken(by_hand(), TOKENIZER)
    for turns, (prompt, (said, _)) in zip(found, EXPECTED.items(), strict=True):
        texts = [prompt, *(text.rstrip("$") for text in said)]
        assert turns == list(zip([False, True, False, True], texts, strict=False))


def test_one_turn_asks_nobody():
    rollout = by_hand(turns=1)
    assert rollout.batch.tokens.shape == (len(LINES), 14)
    assert rollout.batch.mask[0].sum() == 5  # [2+2]
    truncated = [True, False, True, True, True, True, True, True]
    assert rollout.truncated.tolist() == truncated


# A policy that ends turns at random, and an environment that says something else to
# each text; it ends some responses.


def oracle(text: str) -> str | None:
    code = sum(map(ord, text)) % 7
    return None if code == 0 else "answer"[: code - 1]


TURN_IDS = tuple(range(100, 160))
RANDOM = InteractionConfig(turn_ids=TURN_IDS, turns=3, env_tokens=4)
TEXTS = ["ab", "cde", "f", "ghij", "kl", "m"]


TABLE = tabular_params(jax.random.key(3), VOCAB)
TABULAR = tabular_policy, TABLE


def act(network=TABULAR, texts=TEXTS, rows=None, *, sampling=SAMPLING, sample=None):
    return interact(
        sample or sampler(*network),
        prompts_of(texts),
        oracle,
        TOKENIZER,
        key=jax.random.key(7),
        sampling=sampling,
        config=RANDOM,
        rows=None if rows is None else jnp.asarray(rows, jnp.int32),
    )


@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_logprobs_are_those_of_one_forward_pass(kind):
    """The transformer's are over the tokens that truncation kept."""
    network, keep_sets = TABULAR, kind == "transformer"
    if kind == "transformer":
        params = init_params(CausalLM(MODEL), key=jax.random.key(1))
        network = policy_apply(MODEL), randomize(params)
    sampling = dataclasses.replace(
        SAMPLING,
        temperature=0.7,
        top_k=40 if keep_sets else None,
        keep_sets=keep_sets,
    )
    rollout = act(network, sampling=sampling)
    mask = np.asarray(rollout.batch.mask)
    holes = (np.asarray(rollout.batch.segment_ids[:, 4:]) > 0) & ~mask[:, 4:]
    assert holes.any(axis=1).sum() >= 2
    forward = functools.partial(policy_forward, network[0])
    forward = quick_jit(forward, static_argnames="temperature")
    logprobs = forward(
        network[1], rollout.batch, temperature=0.7, kept=rollout.kept
    ).logprobs
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    close(np.where(mask, logprobs, 0), rollout.logprobs)
    assert rollout.logprobs[np.where(mask)].max() < 0
    if keep_sets:
        assert (np.asarray(rollout.kept)[~mask] == 255).all()
    raw = forward(network[1], rollout.batch, temperature=1.0, kept=None).logprobs
    close(np.where(mask, raw, 0), rollout.raw_logprobs)


def test_budgets_are_kept():
    sampling = dataclasses.replace(SAMPLING, completions=2)
    rollout = act(sampling=sampling)
    batch = jax.device_get(rollout.batch)
    assert batch.mask.sum(axis=1).max() <= SAMPLING.max_new_tokens
    for row, turns in enumerate(spoken(rollout, TOKENIZER)):
        assert turns[1][0] and turns[-1][0]  # the policy begins and ends
        real = batch.segment_ids[row, 4:] > 0
        hole = np.diff(np.r_[0, real & ~batch.mask[row, 4:], 0].astype(int))
        starts, ends = np.nonzero(hole == 1)[0], np.nonzero(hole == -1)[0]
        assert len(starts) <= RANDOM.turns - 1
        assert (ends - starts <= RANDOM.env_tokens).all()
    assert rollout.truncated.any() and not rollout.truncated.all()


def rows_of(rollout) -> dict[int, list]:
    leaves = jax.tree.leaves(jax.device_get(rollout))
    return {int(r): [x[i] for x in leaves] for i, r in enumerate(rollout.row)}


def test_every_turn_has_noise_of_its_own():
    keys = []

    def noting(*batch, key, config):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return sampler(*TABULAR)(*batch, key=key, config=config)

    act(sample=noting)
    assert len(set(keys)) == len(keys) == RANDOM.turns


def test_neither_order_nor_split_nor_devices_matter():
    """On two devices each draws half of the rows."""
    whole = rows_of(act())
    parts = [
        rows_of(act(texts=[TEXTS[i] for i in part], rows=part))
        for part in ([4, 0, 5], [2, 1, 3])
    ]
    devices = local_devices(2)

    def on_two(prompts, row, *, key, config):
        step = functools.partial(sample_step, apply_fn=tabular_policy, config=config)
        axes = {"in_axes": (None, 0, 0), "out_axes": 0}
        parts = shard((prompts, row), devices)
        step = data_parallel(step, devices, **axes)
        return unshard(step(TABLE, *parts, key=key))

    for found in (parts[0] | parts[1], rows_of(act(sample=on_two))):
        assert sorted(found) == sorted(whole)
        for row, leaves in found.items():
            for a, b in zip(leaves, whole[row], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_turn_is_compiled_once():
    traces = []

    def counting(params, batch, **cache):
        traces.append(batch.tokens.shape)
        return tabular_policy(params, batch, **cache)

    for texts in (TEXTS, TEXTS[::-1]):
        act((counting, TABLE), texts)
    read = [shape for shape in traces if shape[1] > 1]  # prefill, but for a column
    assert read == [(6, 4 - 1), (6, 4 + 9 + 4 - 1), (6, 4 + 9 + 8 - 1)]


def test_a_row_without_a_prompt_says_nothing():
    rollout = act(texts=["", *TEXTS[1:]])
    assert not rollout.batch.segment_ids[0].any() and not rollout.batch.mask[0].any()
    assert not rollout.truncated[0] and rollout.batch.mask[1:].any(axis=1).all()


# Updates. Under the mask there is NaN: what the environment said teaches nothing.


def steps(config):
    """Both steps, jitted."""
    prepare = functools.partial(
        experience_step, ref_apply_fn=tabular_policy, config=config
    )
    return quick_jit(prepare), quick_jit(functools.partial(policy_step, config=config))


def spoilt(rollout):
    nan = lambda x: jnp.where(rollout.batch.mask, x, jnp.nan)
    return dataclasses.replace(rollout, logprobs=nan(rollout.logprobs))


def test_a_group_update_ignores_the_environment():
    sampling = dataclasses.replace(SAMPLING, completions=2)
    rollout = act(sampling=sampling)
    config = POLICY_PRESETS["grpo"](sampling)
    scores = jnp.arange(12.0) % 5
    prepare, update = steps(config)
    states = []
    for given in (rollout, spoilt(rollout)):
        state = create_policy_state(tabular_policy, TABLE, optax.sgd(0.1), kl_coef=0.04)
        experience, _ = prepare(state, TABLE, given, scores)
        state, metrics = update(state, experience, key=jax.random.key(0))
        states.append(state.params)
        assert metrics.compute()["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    chex.assert_trees_all_equal(*states)
    moved = np.abs(np.asarray(states[0]["logits"] - TABLE["logits"])).sum(axis=1)
    assert_only_before_policy_tokens(moved, rollout)


def assert_only_before_policy_tokens(moved, rollout):
    """Logits after token v move only where the policy drew what follows a v."""
    tokens, mask = map(np.asarray, (rollout.batch.tokens, rollout.batch.mask))
    read = set(tokens[:, :-1][mask[:, 1:]].tolist())
    unread = set(tokens[:, :-1][~mask[:, 1:]].tolist()) - read
    assert len(unread) > 3 and moved[sorted(unread)].max() == 0
    assert moved[sorted(read)].max() > 0


def test_a_ppo_update_ignores_the_environment():
    rollout = act()
    config = PolicyConfig(sampling=SAMPLING, epochs=1)
    prepare, update = steps(config)
    state = create_policy_state(tabular_policy, TABLE, optax.sgd(0.1), kl_coef=0.1)
    states = []
    for given in (rollout, spoilt(rollout)):
        experience, _ = prepare(state, TABLE, given, jnp.arange(6.0))
        assert (experience.advantages[~rollout.batch.mask] == 0).all()
        new, _ = update(state, experience, key=jax.random.key(0))
        states.append(new.params)
    chex.assert_trees_all_equal(*states)
    moved = np.abs(np.asarray(states[0]["logits"] - TABLE["logits"])).sum(axis=1)
    assert_only_before_policy_tokens(moved, rollout)
