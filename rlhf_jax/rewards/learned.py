"""Scores of a learned reward model r(x, y)."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from rlhf_jax.masking import last_column
from rlhf_jax.ops.reward_loss import label_reward
from rlhf_jax.types import Array, Params, ScoreFn, TokenBatch

ScoreKind = Literal["score", "logit", "probability"]


def sequence_scores(score_fn: ScoreFn, params: Params, batch: TokenBatch) -> Array:
    """The network's outputs at the last real token of each row.

    Ziegler et al. 2019, arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325. The
    last real token counts whether or not it ends the sequence.

    Args:
      score_fn: the reward network.
      params: its parameters.
      batch: [B, T] tokens, one sequence a row (segment id 1; 0 is padding).

    Returns:
      [B, N] float32; 0 for a row that is all padding.

    >>> column = lambda params, batch, *, at: at[..., None].astype(float)
    >>> tokens = jnp.ones((1, 3), int)
    >>> real = jnp.array([[1, 1, 0]])
    >>> batch = TokenBatch(tokens, real, jnp.array([[0, 1, 1]]), real == 1)
    >>> sequence_scores(column, {}, batch)
    Array([[1.]], dtype=float32)
    """
    real = (batch.segment_ids > 0)[:, None]
    return jnp.squeeze(last_scores(score_fn, params, batch, real), 1)


def last_scores(
    score_fn: ScoreFn, params: Params, batch: TokenBatch, masks: Array
) -> Array:
    """The network's outputs at the last token of each of S sequences of a row.

    No reference. Nothing else is asked of the network.

    Args:
      score_fn: the reward network.
      params: its parameters.
      batch: [B, T] tokens, packed or not.
      masks: [B, S, T] bool, the tokens of each sequence (`masking.segment_masks`).

    Returns:
      [B, S, N] float32; 0 for a sequence without a token.

    >>> column = lambda params, batch, *, at: at[..., None].astype(float)
    >>> masks = jnp.array([[[True, True, False], [False, False, False]]])
    >>> last_scores(column, {}, None, masks).tolist()
    [[[1.0], [0.0]]]
    """
    scores = score_fn(params, batch, at=last_column(masks))
    return jnp.where(jnp.any(masks, axis=-1)[:, :, None], scores, 0.0)


def learned_reward(
    score_fn: ScoreFn,
    params: Params,
    batch: TokenBatch,
    *,
    kind: ScoreKind = "score",
    label: int = 1,
) -> Array:
    """One number a sequence: the scalar score, or the logit or probability of a label.

    Ouyang et al. 2022, arXiv:2203.02155, for the score; no reference for labels.

    Args:
      score_fn: the reward network; one output for ``score``, one a label for the
        others.
      params: its parameters.
      batch: [B, T] tokens, one sequence a row.
      kind: how the outputs become the reward.
      label: the output that is good, not for ``score``; 1 of a good/bad classifier.

    Returns:
      [B] float32.

    Raises:
      ValueError: the network's number of outputs does not fit kind or label.

    >>> two = lambda params, batch, *, at: jnp.zeros((*at.shape, 2))
    >>> ones = jnp.ones((1, 3), int)
    >>> batch = TokenBatch(ones, ones, jnp.arange(3)[None], ones == 1)
    >>> learned_reward(two, {}, batch, kind="probability")
    Array([0.5], dtype=float32)
    """
    outputs = sequence_scores(score_fn, params, batch)
    if (outputs.shape[-1] == 1) != (kind == "score"):
        expected = "1" if kind == "score" else "2 or more"
        raise ValueError(
            f"a reward of kind {kind!r} needs a network with {expected} outputs, "
            f"this one has {outputs.shape[-1]}"
        )
    if kind == "score":
        return jnp.squeeze(outputs, -1)
    return label_reward(outputs, label=label, kind=kind)


def ensemble_scores(
    models: Sequence[tuple[ScoreFn, Params]],
    batch: TokenBatch,
    *,
    kind: ScoreKind = "score",
    label: int = 1,
) -> Array:
    """Scores of several reward models, for ``ops.ensemble_reward``. No reference.

    Args:
      models: M networks with their parameters, all with the same tokens.
      batch: [B, T] tokens, one sequence a row.
      kind: see ``learned_reward``.
      label: see ``learned_reward``.

    Returns:
      [M, B] float32.

    >>> last = lambda params, batch, *, at: params * at[..., None]
    >>> ones = jnp.ones((1, 3), int)
    >>> batch = TokenBatch(ones, ones, jnp.arange(3)[None], ones == 1)
    >>> ensemble_scores([(last, 1.0), (last, 2.0)], batch).tolist()
    [[2.0], [4.0]]
    """
    rewards = [
        learned_reward(*model, batch, kind=kind, label=label) for model in models
    ]
    return jnp.stack(rewards)


def normalize_scores(params: Params, scores: Array) -> Params:
    """Sets gain and offset so that these scores become mean 0, std 1.

    gain ← gain / σ and offset ← (offset − μ) / σ: Ziegler et al. 2019,
    arXiv:1909.08593, who do it before and after training on 256 samples of the
    reference policy.

    Args:
      params: of a reward model whose head has scalar ``gain`` and ``offset``.
      scores: [N] float32, this model's scores of reference samples, none masked.

    Returns:
      New parameters; they differ in gain and offset only.

    Raises:
      ValueError: the scores are all equal, so that no gain makes their std 1.

    >>> head = {"gain": jnp.float32(1.0), "offset": jnp.float32(0.0)}
    >>> normed = normalize_scores({"score_head": head}, jnp.array([1.0, 5.0]))
    >>> {k: float(v) for k, v in normed["score_head"].items()}
    {'gain': 0.5, 'offset': -1.5}
    """
    mean, std = jnp.mean(scores), jnp.std(scores)
    if not std > 0:
        raise ValueError(
            f"{scores.size} reference samples all score {float(mean):.4g}: expected "
            "different scores to normalise by; sample more of them"
        )
    head = params["score_head"]
    head = head | {"gain": head["gain"] / std, "offset": (head["offset"] - mean) / std}
    return params | {"score_head": head}
