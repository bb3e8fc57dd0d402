"""Two completions of a prompt, compared: what online preferences learn from."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.masking import masked_sum
from rlhf_jax.sampling import mixture_apply
from rlhf_jax.steps.online_config import OnlinePreferenceConfig
from rlhf_jax.steps.preference import reference_logps
from rlhf_jax.steps.rollout import sample_step
from rlhf_jax.types import (
    ApplyFn,
    Array,
    Metrics,
    Params,
    PreferenceBatch,
    Rollout,
    TokenBatch,
    join_params,
)


@struct.dataclass
class PairExperience:
    """Two completions of each of B prompts, compared."""

    pairs: PreferenceBatch  # [B, T], one a row
    reference: Array  # [B, 1, 2] float32 nats, chosen first: ``reference_logps``
    first_chosen: Array  # [B] bool: the first completion, the policy's, is the chosen
    win_probs: Array  # [B] float32: P(first ≻ second) = σ(s₁ − s₂)


def sample_pairs(
    params: Params,
    ref_params: Params,
    prompts: TokenBatch,
    row: Array,
    frozen: Params | None = None,
    *,
    key: Array,
    apply_fn: ApplyFn,
    config: OnlinePreferenceConfig,
    layout: Callable[[Params], Params] = lambda params: params,
    report: Callable[..., None] | None = None,
    axis_name: str | None = None,
) -> Rollout:
    """A completion of the policy, and one of π^(1−α) π_ref^α, α = ``config.mixture``.

    Guo et al. 2024, arXiv:2402.04792 (α = 0); Xie et al. 2024, arXiv:2405.21046 (1);
    Munos et al. 2023, arXiv:2312.00886.

    Args:
      params: of the policy.
      ref_params: of the reference; not looked at if α is 0.
      prompts: [B, P] tokens, left-padded.
      row: [B] int32 global rows; with ``key`` they decide what is sampled.
      frozen: parameters of the policy that are not trained; None where all are.
      key: PRNG key, the same on every device.
      apply_fn: the policy, and the reference.
      config: how to draw.
      layout: what is done to the parameters before the decode loop, see `sample_step`.
      report: called on the host while it runs, as ``generate`` says.
      axis_name: unused; rows are independent.

    Returns:
      Rollout of [2B, P + R], the two of a prompt in adjacent rows, the policy's first.
    """
    options = {"report": report, "axis_name": axis_name}
    if config.mixture == 0:
        return sample_step(
            *(params, prompts, row, frozen),
            key=key,
            apply_fn=apply_fn,
            config=config.sampling,
            layout=layout,
            **options,
        )
    # Drawn with keys of their own: pairs of the same noise would not be independent.
    keys = jax.random.split(key)
    one = dataclasses.replace(config.sampling, completions=1)
    ours = layout(join_params(frozen, params))
    other, other_fn = layout(ref_params), apply_fn
    if config.mixture < 1:
        other = {"policy": ours, "reference": other}
        other_fn = mixture_apply(apply_fn, apply_fn, alpha=config.mixture)
    first, second = (
        sample_step(tree, prompts, row, key=k, apply_fn=fn, config=one, **options)
        for tree, fn, k in zip((ours, other), (apply_fn, other_fn), keys, strict=True)
    )
    pair = lambda x, y: jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
    both = jax.tree.map(pair, first, second)
    return dataclasses.replace(both, row=pair(2 * first.row, 2 * first.row + 1))


def rank_pairs(
    rollout: Rollout, scores: Array, *, key: Array | None = None
) -> tuple[PreferenceBatch, Array]:
    """Who of two is chosen: the better score; with a key, by chance σ(s₁ − s₂).

    Bradley & Terry 1952; Guo et al. 2024, arXiv:2402.04792. DPO of labels drawn by
    Bradley–Terry has the optimum π* ∝ π_ref e^(s/β); of the better ones it has none,
    and goes on towards the best completion.

    Args:
      rollout: [2B, T], the two completions of a prompt in adjacent rows.
      scores: [2B] float, one number a completion.
      key: PRNG key of the labels, the same on every device, each global row with its
        own of it; None for the better ones.

    Returns:
      (pairs [B, T], [B] bool: the first is chosen). The margin is the difference of
      scores; the weight is 1, and 0 where a completion is empty, or without a key
      neither score is the better one.

    >>> from rlhf_jax.types import TokenBatch
    >>> both = jnp.ones((2, 1), int)
    >>> batch = TokenBatch(jnp.array([[7], [8]]), both, 0 * both, both == 1)
    >>> rollout = Rollout(batch, *6 * [jnp.zeros(2)])
    >>> pairs, _ = rank_pairs(rollout, jnp.array([0.5, 2.0]))
    >>> pairs.chosen.tokens.tolist(), pairs.margin.tolist()
    ([[8]], [1.5])
    """
    scores = scores.astype(jnp.float32).reshape(-1, 2)
    lead = scores[:, 0] - scores[:, 1]
    every_other = lambda i: jax.tree.map(lambda x: x[i::2], rollout.batch)
    first, second = every_other(0), every_other(1)
    counts = jnp.any(first.mask, axis=1) & jnp.any(second.mask, axis=1)
    if key is None:
        first_chosen, counts = lead > 0, counts & (lead != 0)
    else:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rollout.row[::2])
        first_chosen = jax.vmap(jax.random.uniform)(keys) < jax.nn.sigmoid(lead)
    pick = lambda x, y: jnp.where(first_chosen[:, None], x, y)
    pairs = PreferenceBatch(
        chosen=jax.tree.map(pick, first, second),
        rejected=jax.tree.map(pick, second, first),
        margin=jnp.where(first_chosen, lead, -lead),
        weight=counts.astype(jnp.float32),
        annotator=jnp.full(lead.shape, -1, jnp.int32),
    )
    return pairs, first_chosen


def pair_experience_step(
    ref_params: Params,
    rollout: Rollout,
    scores: Array,
    *,
    key: Array,
    ref_apply_fn: ApplyFn,
    config: OnlinePreferenceConfig,
    axis_name: str | None = None,
) -> tuple[PairExperience, Metrics]:
    """All that an update needs: pairs, and what the reference thinks of them.

    No reference.

    Args:
      ref_params: of the reference policy.
      rollout: [2B, T] of ``sample_pairs``.
      scores: [2B] float, one number a completion.
      key: PRNG key of labels that are drawn, the same on every device.
      ref_apply_fn: the reference policy.
      config: labels, and who drew the second completions.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      PairExperience; and of the global batch ``objective/*`` and ``rollout/*`` of what
      the policy itself has drawn, and ``pairs/*`` (docs/metrics).
    """
    drawn = key if config.labels == "drawn" else None
    pairs, first_chosen = rank_pairs(rollout, scores, key=drawn)
    reference = reference_logps(ref_params, pairs, ref_apply_fn=ref_apply_fn)
    lead = scores[::2] - scores[1::2]
    experience = PairExperience(
        pairs, reference, first_chosen, jax.nn.sigmoid(lead.astype(jnp.float32))
    )
    sides = [of_side(reference[:, 0], first_chosen, number) for number in (0, 1)]
    ref_logps = jnp.stack(sides, axis=1).reshape(-1)
    own = jnp.ones(scores.shape, bool)
    if config.mixture > 0:
        own = own & (jnp.arange(scores.shape[0]) % 2 == 0)
    metrics = objective_metrics(rollout, scores, ref_logps, own)
    count = lead.shape[0]
    metrics += Metrics.of(
        {
            "pairs/win": (jnp.sum(experience.win_probs), count),
            "pairs/equal": (jnp.sum(lead == 0), count),
        }
    )
    return jax.lax.stop_gradient(experience), metrics.reduce(axis_name)


def of_side(x: Array, first_chosen: Array, number: int) -> Array:
    """[B] of the first (0) or second (1) completion, from [B, 2] with chosen first."""
    chosen = first_chosen if number == 0 else ~first_chosen
    return jnp.where(chosen, x[:, 0], x[:, 1])


def objective_metrics(
    rollout: Rollout, scores: Array, ref_logps: Array, own: Array
) -> Metrics:
    """``objective/*``, ``rollout/*`` over this device's completions, not yet reduced.

    Args:
      rollout: [B, T].
      scores: [B] float32.
      ref_logps: [B] float32 nats, Σ log π_ref of each completion.
      own: [B] bool, those that the policy itself has drawn.
    """
    own = own & (rollout.row >= 0)
    mask = rollout.batch.mask & own[:, None]
    # Of temperature 1, as the reference's and those of the update.
    logps = jnp.sum(jnp.where(mask, rollout.raw_logprobs, 0.0), axis=1)
    entropy, tokens = masked_sum(-rollout.logprobs, mask)
    per_episode = {
        "objective/score": masked_sum(scores, own)[0],
        "objective/kl": masked_sum(logps - ref_logps, own)[0],
        "objective/entropy": entropy,
        "rollout/response_length": tokens,
        "rollout/ended": jnp.sum(own & ~rollout.truncated),
    }
    episodes = jnp.sum(own, dtype=jnp.float32)
    return Metrics.of({name: (total, episodes) for name, total in per_episode.items()})
