"""Pairs of a policy's own completions: who draws, who is chosen, what is learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    ONLINE_PRESETS,
    OnlinePreferenceConfig,
    PreferenceConfig,
    create_state,
    online_preference_step,
    pair_experience_step,
    preference_step,
    rank_pairs,
    sample_pairs,
)

VOCAB, PROMPTS = 6, 8
SAMPLING = SamplingConfig(max_new_tokens=4, stop_ids=(1,), completions=2)
CONFIG = OnlinePreferenceConfig(SAMPLING)
OURS, THEIRS = (tabular_params(jax.random.key(i), VOCAB) for i in (1, 2))


@functools.cache
def rollout(mixture=0.0, rows=PROMPTS):
    sample = functools.partial(
        sample_pairs,
        apply_fn=tabular_policy,
        config=dataclasses.replace(CONFIG, mixture=mixture),
    )
    asked = token_batch(jnp.full((rows, 1), 2))
    draw = quick_jit(sample)
    return draw(OURS, THEIRS, asked, jnp.arange(rows), key=jax.random.key(0))


def scores_of(rollout):
    """What no policy knows of: by the response's tokens."""
    weights = jnp.arange(1.0, rollout.batch.tokens.shape[1] + 1)
    return jnp.where(rollout.batch.mask, rollout.batch.tokens, 0) @ weights / 10


def prepared(config, drawn=None):
    drawn = rollout(config.mixture) if drawn is None else drawn
    prepare = functools.partial(
        pair_experience_step, ref_apply_fn=tabular_policy, config=config
    )
    args = THEIRS, drawn, scores_of(drawn)
    return quick_jit(prepare)(*args, key=jax.random.key(3))


update = quick_jit(online_preference_step, static_argnames="config")


def state(lr=1.0):
    return create_state(tabular_policy, OURS, optax.sgd(lr))


def assert_same_params(a, b, atol=1e-7):
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_who_draws_the_second_completion(mixture):
    """The share of a first token, in 4,000 pairs; and the two are independent."""
    pairs = rollout(mixture, 4_000)
    np.testing.assert_array_equal(pairs.row, np.arange(8_000))
    first, second = (np.asarray(pairs.batch.tokens[i::2, 1]) for i in (0, 1))
    ours, theirs = (jax.nn.log_softmax(p["logits"][2]) for p in (OURS, THEIRS))
    p = np.asarray(jax.nn.softmax(ours))
    q = np.asarray(jax.nn.softmax((1 - mixture) * ours + mixture * theirs))
    for drawn, expected in ((first, p), (second, q)):
        share = np.bincount(drawn, minlength=VOCAB) / 4_000
        assert 0.5 * np.abs(share - expected).sum() < 0.03
    together = np.histogram2d(first, second, bins=range(VOCAB + 1))[0] / 4_000
    assert 0.5 * np.abs(together - np.outer(p, q)).sum() < 0.08


def hand_made(tokens, mask, scores):
    drawn = rollout(rows=2)
    batch = token_batch(tokens, mask=mask)
    drawn = dataclasses.replace(drawn, batch=batch, row=jnp.arange(4))
    return drawn, jnp.asarray(scores)


def test_the_better_one_is_chosen_and_ties_do_not_count():
    args = hand_made([[0, 1], [0, 2], [0, 3], [0, 4]], None, [1.0, 3.0, 2.0, 2.0])
    pairs, first = rank_pairs(*args)
    assert pairs.chosen.tokens[0].tolist() == [0, 2]
    assert pairs.rejected.tokens[0].tolist() == [0, 1]
    assert first.tolist()[0] is False
    assert pairs.margin.tolist()[0] == 2 and pairs.weight.tolist() == [1, 0]
    turned, first = rank_pairs(args[0], -args[1])
    assert turned.chosen.tokens[0].tolist() == [0, 1] and first.tolist()[0] is True


def test_an_empty_completion_does_not_count():
    mask = [[False, True], [False, True], [False, True], [False, False]]
    args = hand_made([[0, 1], [0, 2], [0, 3], [0, 4]], mask, [1.0, 3.0, 1.0, 2.0])
    for key in (None, jax.random.key(0)):
        assert rank_pairs(*args, key=key)[0].weight.tolist() == [1, 0]


def test_labels_are_drawn_by_bradley_terry_whatever_the_devices():
    pairs = rollout(0.0, 4_000)
    scores = jnp.tile(jnp.array([1.0, 0.5]), 4_000)
    key = jax.random.key(5)
    judged, first = rank_pairs(pairs, scores, key=key)
    share = 1 / (1 + np.exp(-0.5))
    assert float(first.mean()) == pytest.approx(share, abs=0.02)
    np.testing.assert_array_equal(judged.margin, np.where(first, 0.5, -0.5))
    half = jax.tree.map(lambda x: x[4_000:], pairs)  # another device's part
    _, again = rank_pairs(half, scores[4_000:], key=key)
    np.testing.assert_array_equal(again, first[2_000:])
    ties = rank_pairs(pairs, 0 * scores, key=key)[0]
    assert float(ties.weight.min()) == 1  # the coin decides


def test_online_dpo_is_preference_step_of_the_ranked_pairs():
    experience, _ = prepared(CONFIG)
    found, metrics = update(state(), experience, config=CONFIG)
    pairs, _ = rank_pairs(rollout(), scores_of(rollout()))
    plain = functools.partial(
        preference_step, ref_apply_fn=tabular_policy, config=CONFIG.preference
    )
    expected, same = quick_jit(plain)(state(), pairs, THEIRS)
    assert_same_params(found, expected)
    assert metrics.compute() == pytest.approx(same.compute())
    assert metrics.compute()["optim/grad_norm"] > 1e-3


def test_a_loss_without_a_reference_has_none():
    simpo = dataclasses.replace(CONFIG, preference=PreferenceConfig(kind="simpo"))
    experience, _ = prepared(simpo)
    _, metrics = update(state(), experience, config=simpo)
    assert metrics.compute()["optim/grad_norm"] > 1e-3


def test_xpo_adds_the_bonus_of_what_the_reference_drew():
    xpo = dataclasses.replace(CONFIG, mixture=1.0, xpo_coef=0.3)
    experience, _ = prepared(xpo)
    assert 0 < experience.first_chosen.sum() < PROMPTS  # on either side of the pairs
    found, metrics = update(state(), experience, config=xpo)
    plain = dataclasses.replace(xpo, xpo_coef=0.0)
    dpo, _ = update(state(), experience, config=plain)
    second = jax.tree.map(lambda x: x[1::2], rollout(1.0).batch)
    weight = experience.pairs.weight

    def bonus(params):
        logits = jax.nn.log_softmax(params["logits"])
        logps = logits[second.tokens[:, :-1], second.tokens[:, 1:]]
        logps = jnp.sum(jnp.where(second.mask[:, 1:], logps, 0), axis=1)
        return 0.3 * jnp.sum(logps * weight) / jnp.sum(weight)

    value, gradient = jax.value_and_grad(bonus)(OURS)
    moved = dpo.replace(params=jax.tree.map(jnp.subtract, dpo.params, gradient))
    assert_same_params(found, moved, atol=1e-6)
    assert metrics.compute()["xpo/bonus"] == pytest.approx(float(value), rel=1e-5)


def test_nash_md_learns_from_the_policy_s_own_completions_alone():
    nash = ONLINE_PRESETS["nash_md"](SAMPLING)
    experience, _ = prepared(nash)
    first = jax.tree.map(lambda x: x[::2], rollout(nash.mixture).batch)
    scores = scores_of(rollout(nash.mixture)).reshape(-1, 2)
    wins = jax.nn.sigmoid(scores[:, 0] - scores[:, 1])

    def loss(params):
        def logps(params):
            table = jax.nn.log_softmax(params["logits"])
            taken = table[first.tokens[:, :-1], first.tokens[:, 1:]]
            return jnp.sum(jnp.where(first.mask[:, 1:], taken, 0), axis=1)

        advantage = wins - 0.5 - 0.1 * (logps(OURS) - logps(THEIRS))
        return -jnp.mean(advantage * logps(params))

    expected = jax.tree.map(jnp.subtract, OURS, jax.grad(loss)(OURS))
    for parts in (1, 2, 4):
        pair = PreferenceConfig(micro_batches=parts)
        config = dataclasses.replace(nash, preference=pair)
        found, _ = update(state(), experience, config=config)
        assert_same_params(found, state().replace(params=expected), atol=1e-6)


def test_metrics_are_of_what_the_policy_drew():
    config = dataclasses.replace(CONFIG, mixture=1.0)
    drawn = rollout(1.0)
    scores = scores_of(drawn).reshape(-1, 2)
    found = prepared(config)[1].compute()
    assert found["objective/score"] == pytest.approx(float(scores[:, 0].mean()))
    wins = jax.nn.sigmoid(scores[:, 0] - scores[:, 1])
    assert found["pairs/win"] == pytest.approx(float(wins.mean()))
    table = jax.nn.log_softmax(OURS["logits"]) - jax.nn.log_softmax(THEIRS["logits"])
    tokens, mask = drawn.batch.tokens[::2], drawn.batch.mask[::2]
    apart = jnp.where(mask[:, 1:], table[tokens[:, :-1], tokens[:, 1:]], 0).sum()
    assert found["objective/kl"] == pytest.approx(float(apart) / PROMPTS, abs=1e-5)
    both = prepared(CONFIG)[1].compute()
    assert both["objective/score"] == pytest.approx(float(scores_of(rollout()).mean()))


@pytest.mark.parametrize("preset", ["xpo", "nash_md"])
def test_devices_change_nothing(preset):
    """Prompts, labels and updates of four devices are those of one."""
    config = dataclasses.replace(ONLINE_PRESETS[preset](SAMPLING), labels="drawn")
    found = []
    for count in (1, 4):
        devices = local_devices(count)
        ours, theirs = replicate((OURS, THEIRS), devices)
        sample = functools.partial(sample_pairs, apply_fn=tabular_policy, config=config)
        sample = data_parallel(sample, devices, in_axes=(None, None, 0, 0), out_axes=0)
        prepare = functools.partial(
            pair_experience_step, ref_apply_fn=tabular_policy, config=config
        )
        prepare = data_parallel(
            prepare, devices, in_axes=(None, 0, 0), out_axes=(0, None)
        )
        learn = functools.partial(online_preference_step, config=config)
        learn = data_parallel(learn, devices, in_axes=(None, 0), out_axes=None)
        asked = token_batch(jnp.full((PROMPTS, 1), 2)), np.arange(PROMPTS)
        drawn = sample(ours, theirs, *shard(asked, devices), key=jax.random.key(0))
        scores = shard(scores_of(unshard(drawn)), devices)
        experience, metrics = prepare(theirs, drawn, scores, key=jax.random.key(1))
        after, more = learn(replicate(state(), devices), experience)
        found.append((jax.device_get(after.params), (metrics + more).compute()))
    (one, of_one), (four, of_four) = found
    assert of_one == pytest.approx(of_four, abs=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one, four)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampling": SamplingConfig(4)}, "completions = 1: expected 2"),
        ({"mixture": 1.5}, "mixture = 1.5: expected 0"),
        ({"xpo_coef": -1.0}, "xpo_coef = -1.0: expected 0 or more"),
        (
            {"xpo_coef": 1.0, "preference": PreferenceConfig(kind="ipo")},
            "of a pair of kind dpo",
        ),
        ({"xpo_coef": 1.0, "loss": "nash_md"}, "of a pair of kind dpo"),
        ({"preference": PreferenceConfig(ld_alpha=0.5)}, "ld_alpha = 0.5: expected 1"),
        (
            {
                "sampling": dataclasses.replace(SAMPLING, temperature=0.7),
                "loss": "nash_md",
            },
            "temperature = 0.7: expected 1 for nash_md",
        ),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
