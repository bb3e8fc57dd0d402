"""Which responses expert iteration keeps, and what it says of all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import quick_jit
from toys import tabular_params, tabular_policy, token_batch

from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import best_of_n_step, sample_step
from rlhf_jax.types import TokenBatch

VOCAB, PROMPTS, N = 6, 5, 3
OURS, THEIRS = (tabular_params(jax.random.key(i), VOCAB) for i in (1, 2))


@functools.cache
def sampled():
    """Fifteen responses; the last prompt is padding, which has nothing to answer."""
    sample = functools.partial(
        sample_step,
        apply_fn=tabular_policy,
        config=SamplingConfig(4, stop_ids=(1,), completions=N),
    )
    asked = token_batch(jnp.full((PROMPTS, 1), 2), real=[[1], [1], [1], [1], [0]])
    rows = jnp.arange(PROMPTS)
    rollout = quick_jit(sample)(OURS, asked, rows, key=jax.random.key(0))
    scores = jnp.asarray(np.random.default_rng(0).normal(size=PROMPTS * N), jnp.float32)
    keep = functools.partial(best_of_n_step, ref_apply_fn=tabular_policy, group_size=N)
    return rollout, scores, *quick_jit(keep)(THEIRS, rollout, scores)


def test_the_best_of_each_prompt_is_kept():
    rollout, scores, kept, metrics = sampled()
    best = [N * i + int(np.argmax(scores[N * i : N * i + N])) for i in range(PROMPTS)]
    assert len({row % N for row in best}) > 1
    for name in TokenBatch.__dataclass_fields__:
        whole, part = (np.asarray(getattr(x, name)) for x in (rollout.batch, kept))
        np.testing.assert_array_equal(part, whole[best])
    assert not kept.mask[-1].any() and kept.mask[:-1].any(axis=1).all()
    found = metrics.compute()
    of_best = np.asarray(scores)[best[:-1]].mean()
    assert found["best/score"] == pytest.approx(of_best, rel=1e-5)
    of_all = np.asarray(scores)[: N * (PROMPTS - 1)].mean()
    assert found["objective/score"] == pytest.approx(of_all, rel=1e-5)


def test_the_kl_is_to_the_policy_that_it_began_with():
    rollout, _, _, metrics = sampled()
    apart = jax.nn.log_softmax(OURS["logits"]) - jax.nn.log_softmax(THEIRS["logits"])
    tokens, mask = np.asarray(rollout.batch.tokens), np.asarray(rollout.batch.mask)
    total = sum(
        float(apart[tokens[b, t - 1], tokens[b, t]]) for b, t in np.argwhere(mask)
    )
    found = metrics.compute()["objective/kl"]
    assert found == pytest.approx(total / (N * (PROMPTS - 1)), abs=1e-5)
    assert abs(found) > 0.1


def test_groups_must_be_whole():
    rollout, scores, *_ = sampled()
    with pytest.raises(ValueError, match="group_size = 4 of 15 scores"):
        best_of_n_step(
            THEIRS, rollout, scores, ref_apply_fn=tabular_policy, group_size=4
        )
