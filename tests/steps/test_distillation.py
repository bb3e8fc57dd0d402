"""Distillation on a table of logits: the loss, what is cut, and where it ends."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.tiny import quick_jit
from steps.batches import assert_same, network, rows
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    DistillationConfig,
    create_state,
    distillation_eval,
    distillation_step,
    sample_step,
)
from rlhf_jax.types import ModelOutput

VOCAB, PROMPTS, UPDATES = 4, 8, 150
BETAS = {"forward": 0.0, "reverse": 1.0, "js": 0.5}


def _step(beta=0.5, parts=1, teacher_apply_fn=tabular_policy, **options):
    config = DistillationConfig(beta=beta, micro_batches=parts, **options)
    return functools.partial(
        distillation_step,
        teacher_params=network("policy", table=True, seed=2)[1],
        teacher_apply_fn=teacher_apply_fn,
        config=config,
    )


def _state(tx=None):
    return create_state(*network("policy", table=True), tx or optax.sgd(1.0))


def _updated(step, batch, state=None):
    after, metrics = quick_jit(step)(state or _state(), batch)
    return after.params, metrics.compute()


def test_metrics_equal_the_oracle():
    """float64, one token at a time; the KL is the reverse one, at temperature 1."""
    tables = [network("policy", table=True, seed=seed)[1]["logits"] for seed in (1, 2)]
    batch = rows()

    def log_probs(logits, temperature):
        z = np.asarray(logits, np.float64) / temperature
        return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))

    losses, kls = [], np.zeros(len(batch.tokens))
    for b, t in zip(*np.nonzero(batch.mask), strict=True):
        before = batch.tokens[b, t - 1]
        q, p = (log_probs(table[before], 2.0) for table in tables)
        m = np.log(0.25 * np.exp(p) + 0.75 * np.exp(q))
        kl = lambda x, y: np.sum(np.exp(x) * (x - y))
        losses.append(0.25 * kl(p, m) + 0.75 * kl(q, m))
        kls[b] += kl(*(log_probs(table[before], 1.0) for table in tables))
    expected = {
        "distillation/loss": np.mean(losses),
        "distillation/kl": kls[batch.mask.any(axis=1)].mean(),
    }
    _, found = _updated(_step(0.25, temperature=2.0), batch)
    for name in ("grad_norm", "skipped", "empty"):
        del found[f"optim/{name}"]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cut", [(2, 2), (4, 1)], ids=str)
def test_cuts_change_nothing(cut):
    count, parts = cut
    devices = local_devices(count)
    mapped = data_parallel(
        _step(parts=parts), devices, in_axes=(None, 0), out_axes=None
    )
    after, metrics = mapped(replicate(_state(), devices), shard(rows(), devices))
    assert_same((after.params, metrics.compute()), _updated(_step(), rows()))


def test_masked_tokens_have_no_part():
    batch = rows()
    read = batch.mask | np.roll(batch.mask, -1, axis=1)
    spoilt = dataclasses.replace(batch, tokens=np.where(read, batch.tokens, 1))
    assert not np.array_equal(spoilt.tokens, batch.tokens)
    chex.assert_trees_all_equal(_updated(_step(), batch), _updated(_step(), spoilt))
    nothing, found = _updated(
        _step(), dataclasses.replace(batch, mask=batch.mask & False)
    )
    chex.assert_trees_all_equal(nothing, _state().params)
    assert found["optim/grad_norm"] == 0


def test_ids_that_only_the_teacher_has_are_padding():
    def wider(params, batch):
        logits = tabular_policy(params, batch).logits
        padding = jnp.full((*logits.shape[:2], 3), 9.0)
        return ModelOutput(jnp.concatenate([logits, padding], axis=-1))

    found = _updated(_step(teacher_apply_fn=wider), rows())
    assert_same(found, _updated(_step(), rows()))


def test_evaluation_has_the_numbers_of_the_step():
    step = _step()
    _, expected = _updated(step, rows())
    found = distillation_eval(
        _state().params, rows(), apply_fn=tabular_policy, **step.keywords
    ).compute()
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-5)
    assert set(found) == {"distillation/loss", "distillation/kl"}


def _distil(beta, devices):
    """(student, teacher) after updates on what the student draws itself."""
    teacher = tabular_params(jax.random.key(1), VOCAB)
    config = DistillationConfig(SamplingConfig(max_new_tokens=4), beta=beta)
    tx = optax.adam(optax.linear_schedule(0.2, 0.0, UPDATES))
    state = create_state(tabular_policy, tabular_params(jax.random.key(2), VOCAB), tx)

    def train(state, prompts, row, *, axis_name):
        def update(state, key):
            rollout = sample_step(
                state.params,
                prompts,
                row,
                key=key,
                apply_fn=tabular_policy,
                config=config.sampling,
            )
            return distillation_step(
                state,
                rollout.batch,
                teacher,
                teacher_apply_fn=tabular_policy,
                config=config,
                axis_name=axis_name,
            )

        return jax.lax.scan(update, state, jax.random.split(jax.random.key(0), UPDATES))

    count = VOCAB * PROMPTS
    prompts = token_batch(np.arange(count)[:, None] % VOCAB, mask=np.zeros((count, 1)))
    mapped = data_parallel(train, devices, in_axes=(None, 0, 0), out_axes=None)
    asked = shard((prompts, jnp.arange(count, dtype=jnp.int32)), devices)
    after, metrics = mapped(replicate(state, devices), *asked)
    probs = lambda params: np.asarray(jax.nn.softmax(params["logits"]))
    return probs(state.params), probs(after.params), probs(teacher), metrics


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", BETAS)
def test_the_student_reaches_its_teacher(name, count):
    start, found, teacher, metrics = _distil(BETAS[name], local_devices(count))
    distance = lambda p: 0.5 * np.abs(p - teacher).sum(axis=1).max()
    assert distance(start) > 0.3
    assert distance(found) < 0.01
    kl = np.asarray(metrics.sums["distillation/kl"])
    assert kl[-1] < 1e-3 * kl[0]


@pytest.mark.parametrize(
    "options",
    [{"beta": 1.1}, {"on_policy": -0.1}, {"temperature": 0.0}, {"micro_batches": 0}],
)
def test_config_names_the_option(options):
    with pytest.raises(UserError, match=next(iter(options))):
        DistillationConfig(**options)
