"""The relatives of GRPO: each preset against its paper, a response at a time."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps.test_group import KEY, ROWS, SIZE, _logprobs, _rollout, _table, never
from toys import tabular_policy

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    PolicyConfig,
    create_policy_state,
    experience_step,
    policy_step,
)

SAMPLING = SamplingConfig(max_new_tokens=5, temperature=0.7, completions=SIZE)
# A group that teaches nothing, and two values so that others are alike.
GREEDY = jnp.cos(jnp.arange(float(ROWS)))
SCORES = np.where(np.arange(ROWS) // SIZE == 2, 0.5, np.round(np.sin(np.arange(ROWS))))


def _config(preset):
    """The preset's numbers, but one update a batch."""
    return dataclasses.replace(
        POLICY_PRESETS[preset](SAMPLING), epochs=1, minibatches=1
    )


def _state(config):
    return create_policy_state(
        tabular_policy, _table(1), optax.sgd(1.0), kl_coef=config.kl.coef
    )


def _experience(config, drawn_by, scores=SCORES):
    return experience_step(
        _state(config),
        _table(2),
        _rollout(drawn_by),
        jnp.asarray(scores),
        greedy_scores=GREEDY if config.advantage == "greedy" else None,
        ref_apply_fn=tabular_policy if config.kl.coef else never,
        config=config,
    )


def _update(config, drawn_by):
    """(gradient by the logits, metrics): of one step of SGD at rate 1."""
    state = _state(config)
    experience, _ = _experience(config, drawn_by)
    after, metrics = policy_step(state, experience, key=KEY, config=config)
    before = np.asarray(state.params["logits"], np.float64)
    return before - np.asarray(after.params["logits"]), metrics.compute()


KL_COEF = {"ppo": 0.05, "reinforce": 0.03, "remax": 0.03, "reinforce_pp": 0.01}
WHITENED = ("ppo", "reinforce_pp", "reinforce_pp_baseline")


def _to_go(preset, rollout, ref):
    """Of each response, rewards to go of its tokens: KL, score, greedy score."""
    found = []
    for i in range(ROWS):
        mask, score = np.asarray(rollout.batch.mask[i]), SCORES[i]
        k1 = (np.asarray(rollout.logprobs[i], np.float64) - ref[i])[mask]
        rewards = -KL_COEF[preset] * k1
        if preset == "ppo" and rollout.truncated[i]:
            score = -1
        rewards[-1] += score - (float(GREEDY[i]) if preset == "remax" else 0)
        decay, total, to_go = 0.95 if preset == "ppo" else 1.0, 0.0, []
        for reward in rewards[::-1]:  # a critic that knows nothing: its values are 0
            total = reward + decay * total
            to_go.append(total)
        found.append(np.array(to_go[::-1]))
    return found


def _leads(preset, rollout, ref):
    """Of each response over its group; None for those that have no part."""
    scores, length = SCORES.astype(float), np.asarray(rollout.batch.mask).sum(axis=1)
    if preset == "rloo":
        k1 = np.where(rollout.batch.mask, np.asarray(rollout.logprobs) - ref, 0.0)
        scores = scores - 0.03 * k1.sum(axis=1)
    if preset == "dapo":  # a buffer of one token
        scores = scores - (length == 5)
    found = []
    for i in range(ROWS):
        first = i - i % SIZE
        group, given = scores[first : first + SIZE], SCORES[first : first + SIZE]
        others = np.delete(group, i % SIZE)
        if preset in ("dapo", "gpg") and len(set(given)) == 1:
            found.append(None)
        elif preset == "rloo":
            found.append(scores[i] - others.mean())
        elif preset in ("dr_grpo", "gpg", "reinforce_pp_baseline"):
            found.append(scores[i] - group.mean())
        else:
            deviation = np.sqrt(np.sum((group - group.mean()) ** 2) / (SIZE - 1))
            found.append((scores[i] - group.mean()) / (deviation + 1e-4))
    return [
        a if a is None else np.full(n, a) for a, n in zip(found, length, strict=True)
    ]


def _advantages(preset, rollout, ref):
    """Of each response, float64 of its tokens; None for those that have no part."""
    if preset not in KL_COEF:
        found = _leads(preset, rollout, ref)
    else:
        found = _to_go(preset, rollout, ref)
    if preset in WHITENED:
        tokens = np.concatenate([np.asarray(a) for a in found])
        found = [(a - tokens.mean()) / np.sqrt(tokens.var() + 1e-8) for a in found]
    return found


def _clipped(ratio, advantage, low, high):
    near = np.clip(ratio, 1 - low, 1 + high)
    return -np.minimum(ratio * advantage, near * advantage)


def oracle(preset, logits, rollout, at):
    """The loss in float64 at ``logits``; what is held fixed, from ``at``."""
    tokens, mask = rollout.batch.tokens, np.asarray(rollout.batch.mask)
    new, ref = _logprobs(logits, tokens), _logprobs(_table(2)["logits"], tokens)
    fixed, old = _logprobs(at, tokens), np.asarray(rollout.logprobs, np.float64)
    terms = []  # of each response
    for i, advantage in enumerate(_advantages(preset, rollout, ref)):
        if advantage is None:
            continue
        now, before = new[i][mask[i]], old[i][mask[i]]
        ratio, d = np.exp(now - before), (ref[i] - new[i])[mask[i]]
        if preset == "grpo":
            k3 = np.exp(d) - 1 - d
            terms.append(_clipped(ratio, advantage, 0.2, 0.2) + 0.04 * k3)
        elif preset in ("ppo", "reinforce_pp", "dr_grpo"):
            terms.append(_clipped(ratio, advantage, 0.2, 0.2))
        elif preset == "reinforce_pp_baseline":
            terms.append(_clipped(ratio, advantage, 0.2, 0.2) + 0.01 * d**2 / 2)
        elif preset == "dapo":
            terms.append(_clipped(ratio, advantage, 0.2, 0.28))
        elif preset == "gspo":
            whole = np.exp(np.mean(now - before))
            terms.append(_clipped(whole, advantage, 3e-4, 4e-4) + 0 * now)
        elif preset == "cispo":
            weight = np.minimum(np.exp(fixed[i][mask[i]] - before), 5.0)
            terms.append(-weight * advantage * now)
        else:
            terms.append(-advantage * now)
    if preset in ("grpo", "gspo"):
        return np.mean([x.mean() for x in terms])
    if preset in ("reinforce", "remax", "rloo", "dr_grpo"):
        return np.mean([x.sum() / (5 if preset == "dr_grpo" else 1) for x in terms])
    return np.mean(np.concatenate(terms))


@pytest.mark.parametrize("preset", POLICY_PRESETS)
def test_gradient_equals_finite_differences_of_the_papers_loss(preset):
    rollout = _rollout(5)  # drawn by another policy: ratios far from 1
    gradient, metrics = _update(_config(preset), drawn_by=5)
    logits = np.asarray(_table(1)["logits"], np.float64)
    for index in np.ndindex(*logits.shape):
        sides = []
        for h in (1e-6, -1e-6):
            moved = logits.copy()
            moved[index] += h
            sides.append(oracle(preset, moved, rollout, logits))
        numeric = (sides[0] - sides[1]) / 2e-6
        assert gradient[index] == pytest.approx(numeric, rel=1e-3, abs=2e-6)
    assert metrics["optim/grad_norm"] > 0.01


@pytest.mark.parametrize("preset", POLICY_PRESETS)
def test_first_ratio_is_one(preset):
    _, metrics = _update(_config(preset), drawn_by=1)
    assert metrics["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert metrics["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["first/approx_kl"] < 1e-6
    clips = _config(preset).surrogate != "policy_gradient"
    assert metrics.get("first/clip_fraction") == (0 if clips else None)


def test_metrics_are_of_the_scores_and_tokens_as_they_were():
    """Penalties, the KL and groups that are skipped are in the advantages alone."""
    length = np.asarray(_rollout(5).batch.mask).sum(axis=1)
    for preset in ("dapo", "rloo"):
        experience, metrics = _experience(_config(preset), drawn_by=5)
        found = metrics.compute()
        assert found["objective/score"] == pytest.approx(SCORES.mean(), rel=1e-5)
        assert found["rollout/response_length"] == pytest.approx(length.mean())
        groups = SCORES.reshape(-1, SIZE)
        equal = (groups == groups[:, :1]).all(axis=1)
        assert found["group/equal"] == pytest.approx(equal.mean())
        assert 0 < equal.mean() < 1
        taught = np.repeat(~equal, SIZE) if preset == "dapo" else np.full(ROWS, True)
        owned = np.asarray(experience.rollout.batch.mask).any(axis=1)
        np.testing.assert_array_equal(owned, taught)


@pytest.mark.parametrize("preset", ["rloo", "dapo"])
def test_groups_on_two_devices(preset):
    sampling = dataclasses.replace(SAMPLING, completions=ROWS // 2)
    config = POLICY_PRESETS[preset](sampling)
    scores = np.where(np.arange(ROWS) < ROWS // 2, 0.5, SCORES)
    expected, metrics = _experience(config, drawn_by=5, scores=scores)
    devices = local_devices(8)
    step = functools.partial(
        experience_step, ref_apply_fn=tabular_policy, config=config
    )
    mapped = data_parallel(
        step, devices, in_axes=(None, None, 0, 0), out_axes=(0, None)
    )
    found, numbers = mapped(
        *replicate((_state(config), _table(2)), devices),
        *shard((_rollout(5), jnp.asarray(scores)), devices),
    )
    chex.assert_trees_all_close(unshard(found), expected, rtol=1e-5, atol=1e-6)
    assert numbers.compute() == pytest.approx(metrics.compute(), rel=1e-4)


def test_a_batch_of_equal_groups_changes_nothing():
    config = dataclasses.replace(
        _config("gpg"), kl=KLConfig(0.3, kind="k3", place="loss")
    )
    experience, _ = experience_step(
        _state(config),
        _table(2),
        _rollout(),
        jnp.ones(ROWS),
        ref_apply_fn=tabular_policy,
        config=config,
    )
    state = _state(config)
    after, _ = policy_step(state, experience, key=KEY, config=config)
    chex.assert_trees_all_equal(after.params, state.params)


def test_the_kl_in_the_score_needs_no_reference_in_the_update():
    config = _config("rloo")
    experience, metrics = _experience(config, drawn_by=5)
    assert metrics.compute()["objective/kl"] != 0
    without = dataclasses.replace(experience, ref_logprobs=None)
    state = _state(config)
    whole, part = (
        policy_step(state, x, key=jax.random.key(0), config=config)[0].params
        for x in (experience, without)
    )
    chex.assert_trees_all_equal(whole, part)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip_eps_high": 0.0}, "clip_eps_high = 0.0: expected more than 0"),
        ({"dual_clip": 1.0}, "dual_clip = 1.0: expected more than 1"),
        ({"max_ratio": 0.0}, "max_ratio = 0.0: expected more than 0"),
        ({"overlong_buffer": 0}, "overlong_buffer = 0: expected 1 or more"),
        ({"overlong_buffer": 6}, "overlong_buffer = 6: .*max_new_tokens = 5 or less"),
        ({"entropy_coef": -1.0}, "entropy_coef = -1.0: expected 0 or more"),
        ({"gamma": 1.5}, "gamma = 1.5: expected 0 to 1"),
        ({"surrogate": "trpo"}, "surrogate = 'trpo': expected ppo or gspo or"),
        ({"advantage": "mean"}, "advantage = 'mean': expected gae or returns or"),
        ({"reduction": "row"}, "reduction = 'row': expected token or sequence or"),
        ({"importance_kind": "none"}, "importance_kind = 'none': expected truncate or"),
        ({"max_ratio": 2.0}, "max_ratio = 2.0: an option of surrogate = cispo, not"),
        ({"surrogate": "gspo", "dual_clip": 3.0}, "dual_clip = 3.0: an option of"),
        (
            {"surrogate": "cispo", "clip_eps": 0.1},
            "clip_eps = 0.1: .* ppo or gspo, not",
        ),
        (
            {"surrogate": "policy_gradient", "clip_eps_high": 0.3},
            "clip_eps_high = 0.3: an option of surrogate = ppo or gspo",
        ),
        ({"scale": "none"}, "scale = none: an option of advantage = group, not gae"),
        (
            {"advantage": "leave_one_out", "lam": 0.5},
            "lam = 0.5: an option of advantage = gae, not leave_one_out",
        ),
        (
            {"advantage": "group", "value_warmup": 3},
            "value_warmup = 3: an option of advantage = gae, not group",
        ),
        ({"constant_length": 3}, "constant_length = 3: .* constant, not token"),
        (
            {"reduction": "constant", "constant_length": 0},
            "constant_length = 0: expected 1 or more",
        ),
        (
            {"advantage": "group", "sampling": SamplingConfig(5)},
            "sampling.completions = 1: expected 2 or more for advantage = group",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PolicyConfig(**({"sampling": SAMPLING} | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"coef": -1.0}, "kl.coef = -1.0: expected 0 or more"),
        ({"kind": "k4"}, "kl.kind = 'k4': expected k1 or k2 or k3"),
        ({"place": "score"}, "kl.place = 'score': expected reward or loss"),
        ({"place": "loss"}, "kl.kind = 'k1' with kl.place = loss: .* k2 or k3"),
        ({"target": 0.0}, "kl.target = 0.0: expected a positive KL"),
        ({"target": 6.0, "coef": 0.0}, "kl.target = 6.0 with kl.coef = 0"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_kl_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        KLConfig(**changes)
