"""GRPO: groups, the KL term in the loss, minibatches, independence of devices."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.ops import group_advantages
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
    unshard,
)
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    create_policy_state,
    experience_step,
    policy_step,
)
from rlhf_jax.types import ModelOutput, Rollout

VOCAB, ROWS, SIZE = 6, 32, 4
SAMPLING = SamplingConfig(max_new_tokens=5, temperature=0.7, completions=SIZE)
CONFIG = dataclasses.replace(
    POLICY_PRESETS["grpo"](SAMPLING), reduction="token", epochs=2, minibatches=2
)
SCORES = jnp.sin(jnp.arange(float(ROWS)))
KEY = jax.random.key(3)


def _table(seed):
    return tabular_params(jax.random.key(seed), VOCAB)


def _state(params=None, lr=1.0, apply_fn=tabular_policy, kl_coef=0.04):
    params = _table(1) if params is None else params
    return create_policy_state(apply_fn, params, optax.sgd(lr), kl_coef=kl_coef)


def _kl(coef):
    """The config with this weight of the KL."""
    return KLConfig(coef=coef, kind="k3", place="loss")


def _logprobs(logits, tokens, temperature=0.7):
    """[B, T] float64: of every token, given the one before."""
    z = np.asarray(logits, np.float64)[np.asarray(tokens)] / temperature
    p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(p[:, :-1], np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    return np.concatenate([np.zeros((len(picked), 1)), picked], axis=1)


@functools.cache
def _rollout(drawn_by=1):
    """Two columns of prompt, answers of 1 to 5 tokens with a hole in some."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, 7))
    column, length = np.arange(7)[None], rng.integers(1, 6, ROWS)[:, None]
    mask = (column >= 2) & (column < 2 + length)
    mask[:8, 3] = False
    logprobs = _logprobs(_table(drawn_by)["logits"], tokens)
    drawn = jnp.asarray(np.where(mask, logprobs, 0.0), jnp.float32)
    return Rollout(
        batch=token_batch(tokens, real=column < 2 + length, mask=mask),
        logprobs=drawn,
        truncated=jnp.asarray(length[:, 0] == 5),
        row=jnp.arange(ROWS, dtype=jnp.int32),
        raw_logprobs=drawn,
        processed_logprobs=drawn,
    )


def _experience(config=CONFIG, drawn_by=1):
    return experience_step(
        _state(),
        _table(2),
        _rollout(drawn_by),
        SCORES,
        ref_apply_fn=tabular_policy,
        config=config,
    )


def never(params, batch, **options):
    raise AssertionError("a forward pass of the reference")


@functools.cache
def _iteration(count, config=CONFIG):
    """Experience and update through pmap: what an experiment runs."""
    devices = local_devices(count)
    bind = lambda f, ins, outs, **kw: data_parallel(
        functools.partial(f, **kw, config=config), devices, in_axes=ins, out_axes=outs
    )
    own = {"ref_apply_fn": tabular_policy}
    prepare = bind(experience_step, (None, None, 0, 0), (0, None), **own)
    update = bind(policy_step, (None, 0), None)
    state, reference = replicate((_state(), _table(2)), devices)
    rollout, scores = shard((_rollout(), SCORES), devices)
    experience, objective = prepare(state, reference, rollout, scores)
    state, metrics = update(state, experience, key=KEY)
    return unshard(experience), (state, objective, metrics)


ONE_UPDATE = dataclasses.replace(CONFIG, epochs=1, minibatches=1)


def oracle(logits, experience, config, ref_logits):
    """(loss, mean surrogate, mean k3) in float64, one token at a time."""
    rollout = experience.rollout
    tokens, mask = rollout.batch.tokens, np.asarray(rollout.batch.mask)
    new, ref = _logprobs(logits, tokens), _logprobs(ref_logits, tokens)
    surrogate, k3 = [], []
    for b, t in zip(*np.nonzero(mask), strict=True):
        ratio = np.exp(new[b, t] - float(rollout.logprobs[b, t]))
        near = min(max(ratio, 1 - config.clip_eps), 1 + config.clip_eps)
        advantage = float(experience.advantages[b, t])
        surrogate.append(-min(ratio * advantage, near * advantage))
        d = ref[b, t] - new[b, t]
        k3.append(np.exp(d) - 1 - d)
    surrogate, k3 = np.mean(surrogate), np.mean(k3)
    return surrogate + config.kl.coef * k3, surrogate, k3


@pytest.mark.parametrize("drawn_by", [1, 5])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gradient_equals_finite_differences_of_the_oracle(drawn_by, kl_coef):
    # drawn_by 5 is another policy: ratios far from 1, some of them clipped.
    config = dataclasses.replace(ONE_UPDATE, kl=_kl(kl_coef))
    experience, _ = _experience(config, drawn_by)
    after, metrics = policy_step(
        _state(kl_coef=kl_coef), experience, key=KEY, config=config
    )
    logits = np.asarray(_table(1)["logits"], np.float64)
    loss = lambda z: oracle(z, experience, config, _table(2)["logits"])
    found, (_, surrogate, k3) = metrics.compute(), loss(logits)
    assert found["policy/loss"] == pytest.approx(surrogate, rel=1e-4, abs=1e-6)
    if kl_coef:
        assert found["policy/ref_kl"] == pytest.approx(k3, rel=1e-4)
    else:
        assert "policy/ref_kl" not in found
    assert (found["policy/clip_fraction"] > 0.1) == (drawn_by == 5)
    gradient = logits - np.asarray(after.params["logits"])  # SGD at rate 1
    for index in np.ndindex(*logits.shape):
        sides = []
        for h in (1e-6, -1e-6):
            moved = logits.copy()
            moved[index] += h
            sides.append(loss(moved)[0])
        numeric = (sides[0] - sides[1]) / 2e-6
        assert gradient[index] == pytest.approx(numeric, rel=1e-3, abs=2e-6)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("scale", ["std", "batch"])
def test_gradients_do_not_depend_on_the_number_of_devices(count, scale):
    # SGD at rate 1: the change of the parameters is the gradient. On 8 devices a group
    # of 4 is one device's; groups of 8 lie on two.
    sampling = dataclasses.replace(CONFIG.sampling, completions=8)
    config = dataclasses.replace(ONE_UPDATE, sampling=sampling, scale=scale)
    experience, _ = _experience(config)
    one, expected = policy_step(_state(), experience, key=KEY, config=config)
    many_experience, (many, objective, metrics) = _iteration(count, config)
    chex.assert_trees_all_close(many_experience, experience, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        many.params["logits"], one.params["logits"], rtol=1e-5, atol=1e-6
    )
    assert metrics.compute() == pytest.approx(expected.compute(), rel=1e-4, abs=1e-6)
    assert metrics.compute()["optim/grad_norm"] > 0.01
    assert objective.compute() == pytest.approx(
        _experience(config)[1].compute(), rel=1e-4
    )


@pytest.mark.parametrize("count", [2, 8])
def test_iteration_does_not_depend_on_the_number_of_devices(count):
    # Same minibatches, same parameters after four updates.
    _, (one, _, expected) = _iteration(1)
    _, (many, _, metrics) = _iteration(count)
    assert int(many.step) == 4
    chex.assert_trees_all_close(many.params, one.params, rtol=1e-5, atol=1e-6)
    assert metrics.compute() == pytest.approx(expected.compute(), rel=1e-4, abs=1e-6)


def test_first_ratio_is_one():
    _, (_, _, metrics) = _iteration(1)
    found = metrics.compute()
    assert found["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert found["first/approx_kl"] < 1e-6
    assert found["first/clip_fraction"] == 0
    assert found["policy/approx_kl"] > 1e-4  # later updates did move away


@pytest.mark.parametrize("keep_sets", [False, True])
def test_first_ratio_of_what_the_sampler_drew_is_one(keep_sets):
    sampling = dataclasses.replace(CONFIG.sampling, top_k=3, keep_sets=keep_sets)
    config = dataclasses.replace(CONFIG, sampling=sampling)
    prompts = token_batch(np.arange(ROWS // SIZE)[:, None] % VOCAB)
    rollout = generate(
        tabular_policy, _table(1), prompts, key=jax.random.key(2), config=sampling
    )
    first = rollout.batch.tokens[:, 0].reshape(-1, SIZE)
    np.testing.assert_array_equal(first, jnp.broadcast_to(first[:, :1], first.shape))
    experience, objective = experience_step(
        _state(), _table(1), rollout, SCORES, ref_apply_fn=tabular_policy, config=config
    )
    assert objective.compute()["objective/kl"] == pytest.approx(0, abs=1e-5)
    _, metrics = policy_step(_state(), experience, key=KEY, config=config)
    found = metrics.compute()
    assert found["first/ratio"] == pytest.approx(1, abs=1e-4)
    assert found["first/ratio_max"] == pytest.approx(1, abs=1e-4)


def test_experience_by_hand():
    experience, metrics = _experience()
    rollout = _rollout()
    expected = group_advantages(SCORES, group_size=SIZE)
    spread = np.where(rollout.batch.mask, np.array(expected)[:, None], 0)
    np.testing.assert_array_equal(experience.advantages, spread)
    mask = np.asarray(rollout.batch.mask)
    reference = _logprobs(_table(2)["logits"], rollout.batch.tokens)
    reference = np.where(mask, reference, 0.0)
    found = np.asarray(experience.ref_logprobs)
    np.testing.assert_allclose(found, reference, atol=1e-5)
    groups = np.asarray(SCORES, np.float64).reshape(-1, SIZE)
    logprobs = np.asarray(rollout.logprobs, np.float64)
    assert metrics.compute() == pytest.approx(
        {
            "objective/score": np.mean(groups),
            "objective/entropy": -logprobs.sum() / ROWS,
            "objective/kl": (logprobs - reference).sum() / ROWS,
            "objective/kl_coef": 0.04,
            "objective/non_score_reward": 0.0,
            "rollout/response_length": mask.sum() / ROWS,
            "rollout/ended": np.mean(~np.asarray(rollout.truncated)),
            "group/score_std": groups.std(axis=1, ddof=1).mean(),
            "group/equal": 0.0,
        },
        rel=1e-4,
        abs=1e-6,
    )


@pytest.mark.fault(16)
def test_groups_of_equal_scores_teach_nothing():
    config = dataclasses.replace(ONE_UPDATE, kl=_kl(0.0))
    experience, metrics = experience_step(
        _state(), {}, _rollout(), jnp.full(ROWS, 0.1), ref_apply_fn=never, config=config
    )
    found = metrics.compute()
    assert found["group/equal"] == 1
    assert found["group/score_std"] == pytest.approx(0, abs=1e-6)
    after, _ = policy_step(_state(), experience, key=KEY, config=config)
    chex.assert_trees_all_equal(after.params, _table(1))


def test_without_a_kl_term_there_is_no_reference():
    config = dataclasses.replace(CONFIG, kl=_kl(0.0))
    experience, metrics = experience_step(
        _state(), {}, _rollout(), SCORES, ref_apply_fn=never, config=config
    )
    assert experience.ref_logprobs is None
    assert "objective/kl" not in metrics.compute()
    with pytest.raises(AssertionError, match="forward pass of the reference"):
        experience_step(
            _state(), {}, _rollout(), SCORES, ref_apply_fn=never, config=CONFIG
        )
    with pytest.raises(ValueError, match="kl.coef = 0.04: the experience has no"):
        policy_step(_state(), experience, key=KEY, config=CONFIG)


@pytest.mark.fault(20)
def test_garbage_under_the_mask_changes_nothing():
    # A column of the table is looked at where the token after it is owned.
    def noisy(params, batch, **options):
        output = tabular_policy(params, batch, **options)
        owned = jnp.roll(batch.mask, -1, axis=1)[..., None]
        return ModelOutput(jnp.where(owned, output.logits, jnp.nan))

    rollout = _rollout()
    mask = rollout.batch.mask
    read = mask | jnp.roll(mask, -1, axis=1)
    tokens = jnp.where(read, rollout.batch.tokens, 0)
    spoilt = dataclasses.replace(
        rollout,
        batch=dataclasses.replace(rollout.batch, tokens=tokens),
        logprobs=jnp.where(mask, rollout.logprobs, jnp.nan),
    )

    def run(rollout, apply_fn):
        experience, objective = experience_step(
            _state(), _table(2), rollout, SCORES, ref_apply_fn=apply_fn, config=CONFIG
        )
        state = _state(apply_fn=apply_fn)
        after, metrics = policy_step(state, experience, key=KEY, config=CONFIG)
        return after.params, objective, metrics

    clean, found = run(rollout, tabular_policy), run(spoilt, noisy)
    chex.assert_trees_all_close(found, clean, rtol=1e-6, atol=1e-6)


@pytest.mark.fault(17)
def test_masked_episodes_leave_the_parameters_alone():
    rollout = _rollout()
    mask = jnp.zeros_like(rollout.batch.mask)
    batch = dataclasses.replace(rollout.batch, mask=mask)
    experience, _ = experience_step(
        _state(),
        _table(2),
        dataclasses.replace(rollout, batch=batch),
        SCORES,
        ref_apply_fn=tabular_policy,
        config=CONFIG,
    )
    after, metrics = policy_step(_state(), experience, key=KEY, config=CONFIG)
    chex.assert_trees_all_equal(after.params, _table(1))
    assert metrics.compute()["optim/grad_norm"] == 0


def test_frozen_parameters_are_joined_and_stay():
    experience, _ = _experience()
    params = _table(1)
    whole, _ = policy_step(_state(), experience, key=KEY, config=CONFIG)
    part, _ = policy_step(
        _state({"logits": params["logits"]}),
        experience,
        {"values": params["values"]},
        key=KEY,
        config=CONFIG,
    )
    assert set(part.params) == {"logits"}
    np.testing.assert_array_equal(part.params["logits"], whole.params["logits"])


def test_one_compilation_serves_all_iterations():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def iterate(state, rollout, scores, key):
        experience, _ = experience_step(
            _state(),
            _table(2),
            rollout,
            scores,
            ref_apply_fn=tabular_policy,
            config=CONFIG,
        )
        return policy_step(state, experience, key=key, config=CONFIG)

    state = _state()
    for seed in range(3):
        state, _ = iterate(state, _rollout(), SCORES + seed, jax.random.key(seed))
    assert int(state.step) == 3 * 4


def test_minibatches_and_groups_must_divide_the_batch():
    config = dataclasses.replace(CONFIG, minibatches=5)
    experience, _ = _experience(config)
    with pytest.raises(ValueError, match="minibatches = 5 of 32 episodes"):
        policy_step(_state(), experience, key=KEY, config=config)
    sampling = dataclasses.replace(CONFIG.sampling, completions=5)
    with pytest.raises(ValueError, match="group_size = 5 of 32 scores"):
        _experience(dataclasses.replace(CONFIG, sampling=sampling))


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("minibatches", 0),
        ("clip_eps", 0.0),
        ("scale", "group"),
        ("sampling", SamplingConfig(max_new_tokens=1)),
    ],
)
def test_config_names_the_option(name, value):
    with pytest.raises(UserError, match=name):
        dataclasses.replace(CONFIG, **{name: value})
