"""Rows of the table of laws: what algorithms of policy optimisation are made of."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from ops.rows import (
    BT,
    Args,
    B,
    Rng,
    Row,
    T,
    V,
    floats,
    packed,
    under_mask,
    under_next_mask,
    under_packed_mask,
    with_mask,
)

from rlhf_jax import masking, ops


def equal_or_not(rng: Rng) -> Args:
    """Scores that are all equal, or not."""
    return (np.full(B, 1.5) if rng.random() < 0.5 else rng.normal(size=B),)


def weighted(x, mask, weights_and_count):
    weights, count = weights_and_count
    return jnp.where(mask, x, 0).astype(jnp.float32) * weights, count


weights_row = lambda **options: Row(
    lambda x, s, m: weighted(x, m, ops.loss_weights(m, s, **options)),
    packed(BT),
    under_packed_mask,
)
importance_row = lambda **options: Row(
    lambda a, b, s, m: ops.importance_weights(a, b, m, segment_ids=s, **options),
    packed(BT, BT),
    under_packed_mask,
    detached=True,
)
distillation_row = lambda beta: Row(
    partial(ops.distillation_loss, beta=beta, temperature=0.7),
    with_mask((B, T, V), (B, T, V)),
    under_next_mask,
)

POLICY_ROWS = {
    "segment_sum": Row(
        lambda x, s, m: masking.segment_sum(x, m, s), packed(BT), under_packed_mask
    ),
    "segment_mean": Row(
        lambda x, s, m: masking.segment_mean(x, m, s), packed(BT), under_packed_mask
    ),
    "segment_mean[row]": Row(masking.segment_mean, with_mask(BT), under_mask),
    "loss_weights[token]": weights_row(kind="token"),
    "loss_weights[sequence]": weights_row(kind="sequence"),
    "loss_weights[constant]": weights_row(kind="constant", length=4),
    "discounted_returns": Row(
        partial(ops.discounted_returns, gamma=0.9), with_mask(BT), under_mask
    ),
    "remax_advantages": Row(ops.remax_advantages, floats((B,), (B,))),
    "overlong_penalty": Row(
        partial(ops.overlong_penalty, budget=10, buffer=4),
        lambda rng: (rng.uniform(4, 12, B),),
    ),
    # One group, so that the laws may permute its rows.
    "informative_groups": Row(
        lambda s: ops.informative_groups(s, group_size=B).astype(jnp.float32),
        lambda rng: (
            np.where(rng.random() < 0.5, 1.5, rng.normal(size=B)) + np.zeros(B),
        ),
    ),
    "best_of_n": Row(
        lambda s: s[ops.best_of_n(s, group_size=B)[0]].astype(jnp.float32),
        floats((B,)),
    ),
    "best_of_n_kl": Row(ops.best_of_n_kl, lambda rng: (rng.uniform(1, 64, B),)),
    "expected_best_of": Row(
        lambda s: ops.expected_best_of(s, group_size=B, k=3)[0], floats((B,))
    ),
    "expected_best_of[gold]": Row(
        lambda s, gold: ops.expected_best_of(s, group_size=B, k=3, gold=gold)[0],
        floats((B,), (B,)),
    ),
    "policy_gradient_loss": Row(
        ops.policy_gradient_loss, with_mask(BT, BT), under_mask
    ),
    "ratio_metrics": Row(
        lambda a, b, m: (jnp.float32(0), ops.ratio_metrics(a, b, m)),
        with_mask(BT, BT),
        under_mask,
    ),
    "ppo_loss": Row(ops.ppo_loss, with_mask(BT, BT, BT), under_mask),
    "ppo_loss[high, dual]": Row(
        partial(ops.ppo_loss, clip_eps_high=0.5, dual_clip=1.7),
        with_mask(BT, BT, BT),
        under_mask,
    ),
    "gspo_loss": Row(
        lambda a, b, adv, s, m: ops.gspo_loss(
            a, b, adv, m, s, clip_eps=0.2, clip_eps_high=0.3
        ),
        packed(BT, BT, BT),
        under_packed_mask,
    ),
    "cispo_loss": Row(
        partial(ops.cispo_loss, max_ratio=1.5, min_ratio=0.5),
        with_mask(BT, BT, BT),
        under_mask,
        detached=True,
    ),
    "importance_weights[truncate, token]": importance_row(kind="truncate"),
    "importance_weights[mask, token]": importance_row(kind="mask"),
    "importance_weights[truncate, sequence]": importance_row(level="sequence"),
    "importance_weights[mask, sequence]": importance_row(kind="mask", level="sequence"),
    "distillation_loss[forward]": distillation_row(0.0),
    "distillation_loss[js]": distillation_row(0.3),
    "distillation_loss[reverse]": distillation_row(1.0),
}
