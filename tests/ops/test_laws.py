"""One row an op, and the laws that every op obeys.

A row names the op, example arguments, and which entries of which arguments its mask
hides. The ``oracle`` fixture in conftest.py holds the oracle of each row.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.policy_rows import POLICY_ROWS
from ops.preference_oracles import BETA, PREFERENCES, REFERENCE_FREE, UNPAIRED
from ops.rows import (
    BT,
    Args,
    B,
    K,
    Row,
    T,
    V,
    floats,
    kl_coefs,
    negative,
    negative_ranks,
    negative_rows,
    no_mask,
    some_pairs,
    under_last_mask,
    under_mask,
    under_mask_with_scores,
    with_ints,
    with_labels,
    with_mask,
    with_masks,
    with_ranks,
    with_unknown,
)

from rlhf_jax import masking, ops
from rlhf_jax.types import Metrics


def finite(x):
    """-inf as 0, so that sums of truncated logits stay finite."""
    return jnp.where(jnp.isneginf(x), 0.0, x)


kl_row = lambda kind: Row(
    lambda a, b, m: ops.kl_estimate(a, b, kind=kind, mask=m),
    with_mask(BT, BT),
    under_mask,
)
group_row = lambda scale: Row(
    partial(ops.group_advantages, group_size=B, scale=scale), floats((B,))
)
preference_row = lambda **options: Row(
    partial(ops.preference_loss, beta=BETA, **options), floats(*[(B,)] * 4)
)
masked_preference_row = lambda kind: Row(
    lambda *a: ops.preference_loss(*a[:4], mask=a[4], beta=BETA, kind=kind),
    some_pairs,
    under_mask,
)


# Columns are rows of the batch; the laws permute the first axis.
ensemble_row = lambda **options: Row(
    lambda s: ops.ensemble_reward(s.T, **options), floats((B, K))
)
USERS = jnp.asarray(np.cos(np.arange(3 * K)).reshape(3, K), jnp.float32)
UNEMBED = np.eye(V) - 0.5 * np.eye(V, k=1)


def fused(hidden, tokens):
    unembed = jnp.asarray(UNEMBED, hidden.dtype)
    options = {"temperature": 0.7, "chunk_size": 3}
    return ops.fused_token_logprobs(hidden, unembed, tokens, **options)


ROWS = {
    "masked_sum": Row(masking.masked_sum, with_mask(BT), under_mask),
    "masked_mean": Row(masking.masked_mean, with_mask(BT), under_mask),
    "masked_whiten": Row(masking.masked_whiten, with_mask(BT), under_mask),
    "masked_whiten[keep mean]": Row(
        partial(masking.masked_whiten, shift_mean=False), with_mask(BT), under_mask
    ),
    "select_last": Row(masking.select_last, with_mask(BT), under_mask, widens=False),
    "align_to_tokens": Row(ops.align_to_tokens, floats(BT), widens=False),
    "token_logprobs": Row(
        partial(ops.token_logprobs, temperature=0.7), with_ints(V, (B, T, V), BT)
    ),
    "fused_token_logprobs": Row(fused, with_ints(V, (B, T, V), BT)),
    "token_entropy": Row(
        partial(ops.token_entropy, temperature=0.7), floats((B, T, V))
    ),
    "scale_by_temperature": Row(
        lambda z: ops.scale_by_temperature(z, 0.7), floats((B, V))
    ),
    "top_k_mask": Row(lambda z: finite(ops.top_k_mask(z, 3)), floats((B, V))),
    "top_p_mask": Row(lambda z: finite(ops.top_p_mask(z, 0.6)), floats((B, V))),
    "min_p_mask": Row(lambda z: finite(ops.min_p_mask(z, 0.3)), floats((B, V))),
    "kl_estimate[k1]": kl_row("k1"),
    "kl_estimate[k2]": kl_row("k2"),
    "kl_estimate[k3]": kl_row("k3"),
    "kl_penalized_rewards": Row(
        partial(ops.kl_penalized_rewards, kl_coef=0.3),
        with_mask((B,), BT, BT),
        under_mask_with_scores,
    ),
    "adaptive_kl_update": Row(
        partial(ops.adaptive_kl_update, target=6.0, horizon=1000.0, num_episodes=64),
        kl_coefs,
    ),
    "gae_advantages": Row(
        partial(ops.gae_advantages, gamma=0.9, lam=0.8), with_mask(BT, BT), under_mask
    ),
    # One group, so that the laws may permute its rows.
    "group_advantages[std]": group_row("std"),
    "group_advantages[none]": group_row("none"),
    "group_advantages[batch]": group_row("batch"),
    "leave_one_out_advantages": Row(
        partial(ops.leave_one_out_advantages, group_size=B), floats((B,))
    ),
    "value_loss": Row(ops.value_loss, with_mask(BT, BT, BT), under_mask),
    "value_loss[no clip]": Row(
        partial(ops.value_loss, clip_eps=None), with_mask(BT, BT, BT), under_mask
    ),
    "explained_variance": Row(ops.explained_variance, with_mask(BT, BT), under_mask),
    "supervised_loss": Row(ops.supervised_loss, with_mask(BT), under_mask),
    "pairwise_reward_loss": Row(
        lambda c, r, m: ops.pairwise_reward_loss(c, r, margin=m),
        floats((B,), (B,), (B,)),
    ),
    "ranking_reward_loss": Row(
        ops.ranking_reward_loss, with_ranks, negative_ranks, nothing=-1
    ),
    "choice_reward_loss": Row(ops.choice_reward_loss, with_ints(K, (B, K), (B,))),
    "binary_reward_loss": Row(ops.binary_reward_loss, with_ints(2, (B, 2), (B,))),
    "binary_reward[logit]": Row(ops.binary_reward, floats((B, 2))),
    "binary_reward[probability]": Row(
        partial(ops.binary_reward, kind="probability"), floats((B, 2))
    ),
    "label_reward[logit]": Row(partial(ops.label_reward, label=0), floats((B, K))),
    "label_reward[probability]": Row(
        partial(ops.label_reward, label=2, kind="probability"), floats((B, K))
    ),
    "centering_loss": Row(partial(ops.centering_loss, coef=0.3), floats((B,), (B,))),
    "personal_score": Row(
        lambda s, f, who: ops.personal_score(s, f, USERS, who),
        with_ints(len(USERS), (B,), (B, K), (B,)),
    ),
    "personal_score[unknown]": Row(
        lambda f, who: ops.personal_score(jnp.zeros(B), f, USERS, who),
        with_unknown(len(USERS), (B, K)),
        negative_rows,
        nothing=-1,
    ),
    "regression_reward_loss": Row(ops.regression_reward_loss, floats((B,), (B,))),
    "process_reward_loss": Row(ops.process_reward_loss, with_mask(BT, BT), under_mask),
    "ensemble_reward[mean]": ensemble_row(kind="mean"),
    "ensemble_reward[minimum]": ensemble_row(kind="minimum"),
    "ensemble_reward[std]": ensemble_row(kind="mean_minus_std", coef=0.5),
    "ensemble_reward[variance]": ensemble_row(kind="mean_minus_variance", coef=0.5),
    "ensemble_disagreement": Row(
        lambda s: ops.ensemble_disagreement(s.T), floats((B, K))
    ),
    # Signs as tokens; garbage is one, too.
    "repetition": Row(
        lambda x, m: ops.repetition((x > 0).astype(jnp.int32), m),
        with_mask(BT),
        under_mask,
    ),
    "repetition[1]": Row(
        lambda x, m: ops.repetition((x > 0.5).astype(jnp.int32), m, ngram=1),
        with_mask(BT),
        under_mask,
    ),
    "pairwise_accuracy": Row(ops.pairwise_accuracy, floats((B,), (B,))),
    "preference_loss[masked]": masked_preference_row("dpo"),
    "preference_loss[aot, masked]": masked_preference_row("aot"),
    **{f"preference_loss[{n}]": preference_row(**o) for n, o in PREFERENCES.items()},
    **{
        f"reference_free_loss[{n}]": Row(
            partial(ops.reference_free_loss, beta=BETA, **o), negative
        )
        for n, o in REFERENCE_FREE.items()
    },
    **{
        f"unpaired_loss[{n}]": Row(
            partial(ops.unpaired_loss, beta=BETA, **o), with_labels
        )
        for n, o in UNPAIRED.items()
    },
    "length_desensitized_logps": Row(
        lambda x, other, mask: ops.length_desensitized_logps(x, mask, other, alpha=0.3),
        with_masks,
        under_last_mask,
    ),
    "on_policy_weight": Row(ops.on_policy_weight, with_mask(BT, BT), under_mask),
    "token_log_collision": Row(
        partial(ops.token_log_collision, temperature=0.7), floats((B, T, V))
    ),
    "xpo_bonus": Row(partial(ops.xpo_bonus, alpha=0.3), floats((B,))),
    "nash_md_loss": Row(
        partial(ops.nash_md_loss, beta=0.4), floats((B,), (B,), (B,)), detached=True
    ),
    "implicit_reward": Row(partial(ops.implicit_reward, beta=0.7), floats((B,), (B,))),
    **POLICY_ROWS,
}
every_op = pytest.mark.parametrize("name", ROWS)
MASKED = [name for name, row in ROWS.items() if row.hides is not no_mask]
masked_op = pytest.mark.parametrize("name", MASKED)


def float32(args: Args) -> Args:
    return tuple(a.astype(np.float32) if a.dtype == np.float64 else a for a in args)


def examples(name: str, seed: int = 0) -> Args:
    """Exactly representable in float32, so that the oracle sees the same numbers."""
    args = float32(ROWS[name].args(np.random.default_rng(seed)))
    return tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in args)


def terms_of(out) -> list:
    """The differentiable outputs: all but Metrics."""
    outs = out if isinstance(out, tuple) else (out,)
    return [o for o in outs if not isinstance(o, (Metrics, dict))]


def weighted_sum(outs, numpy=np):
    """A scalar in which every output entry has its own weight."""
    weigh = lambda o: numpy.sum(o * np.cos(np.arange(np.size(o))).reshape(np.shape(o)))
    return numpy.asarray(sum(weigh(o) for o in outs))


@cache
def jitted(name: str):
    """(outputs, gradients by every float argument) of an op, compiled once."""
    op, sample = ROWS[name].op, examples(name)
    argnums = tuple(i for i, a in enumerate(sample) if a.dtype == np.float64)

    def loss(*args):
        out = op(*args)
        return weighted_sum(terms_of(out), jnp).astype(jnp.float32), out

    grad = jax.jit(jax.grad(loss, argnums=argnums, has_aux=True))

    def call(*args):
        grads, out = grad(*float32(args))
        return out, grads

    return call, argnums


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_oracle(oracle, seed):
    name, expect = oracle
    args = examples(name, seed)
    out, _ = jitted(name)[0](*args)
    expected = expect(*args)
    for got, want in zip(terms_of(out), terms_of(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    if isinstance(out, tuple) and isinstance(out[1], Metrics):
        got = out[1].compute()
        assert got == pytest.approx(expected[1], rel=2e-5, abs=2e-6)


def test_gradient_equals_finite_differences_of_the_oracle(oracle):
    name, expect = oracle
    args = examples(name, seed=1)
    call, argnums = jitted(name)
    _, grads = call(*args)
    fixed = {"at": args} if ROWS[name].detached else {}
    scalar = lambda a: weighted_sum(terms_of(expect(*a, **fixed)))
    for argnum, grad in zip(argnums, grads, strict=True):
        numeric = np.zeros(args[argnum].shape)
        for index in np.ndindex(*args[argnum].shape):
            sides = []
            for h in (1e-5, -1e-5):
                moved = args[argnum].copy()
                moved[index] += h
                sides.append(scalar((*args[:argnum], moved, *args[argnum + 1 :])))
            numeric[index] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(grad, numeric, rtol=2e-5, atol=5e-6)


@pytest.mark.fault(20)
@masked_op
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, "mixed"])
def test_garbage_under_the_mask_changes_nothing(name, garbage):
    args = examples(name, seed=2)
    hidden = ROWS[name].hides(*args)
    call, _ = jitted(name)

    def filled(value):
        fill = lambda a: np.full(a.shape, value)
        if value == "mixed":
            fill = lambda a: np.resize([np.nan, np.inf, -1e30, -np.inf, 1e30], a.shape)
        put = lambda a, h: a if h is None else np.where(h, fill(a), a)
        return call(*(put(a, h) for a, h in zip(args, hidden, strict=True)))

    jax.tree.map(np.testing.assert_array_equal, filled(garbage), filled(0.5))


@pytest.mark.fault(17)
@masked_op
def test_all_masked_is_zero_with_zero_gradient(name):
    *args, mask = examples(name)
    nothing = np.full_like(mask, ROWS[name].nothing)
    hide = lambda a: np.full_like(a, np.nan) if a.dtype == np.float64 else a
    result = jitted(name)[0](*map(hide, args), nothing)
    for leaf in jax.tree.leaves(result):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@every_op
def test_jit_equals_no_jit(name):
    args = examples(name)
    out, _ = jitted(name)[0](*args)
    eager = ROWS[name].op(*map(jnp.asarray, float32(args)))
    close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
    jax.tree.map(close, out, eager)


@every_op
def test_permuting_the_batch_permutes_the_output(name):
    args = examples(name)
    order = np.array([3, 0, 4, 2, 1])
    permute = lambda a: a[order] if np.ndim(a) else a
    out, _ = jitted(name)[0](*args)
    permuted, _ = jitted(name)[0](*map(permute, args))
    close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
    jax.tree.map(close, permuted, jax.tree.map(permute, out))


@every_op
def test_float32_under_strict_promotion(name):
    args = tuple(map(jnp.asarray, float32(examples(name))))
    with jax.numpy_dtype_promotion("strict"):
        out = jax.eval_shape(ROWS[name].op, *args)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.widens])
def test_float32_from_bfloat16(name):
    narrow = lambda a: a.astype(jnp.bfloat16) if a.dtype == np.float32 else a
    args = tuple(narrow(jnp.asarray(a)) for a in float32(examples(name)))
    out = jax.eval_shape(ROWS[name].op, *args)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}


def test_every_public_op_has_a_row():
    assert set(ops.__all__) <= {name.split("[")[0] for name in ROWS}
