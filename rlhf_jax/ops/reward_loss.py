"""Losses that train a reward model on what people prefer."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import optax

from rlhf_jax.types import Array


def pairwise_reward_loss(
    chosen_scores: Array, rejected_scores: Array, *, margin: Array | None = None
) -> Array:
    """Bradley–Terry negative log-likelihood: −log σ(s_chosen − s_rejected − m).

    Stiennon et al. 2020, arXiv:2009.01325, eq. 1; the margin m: Touvron et al. 2023
    (Llama 2), arXiv:2307.09288, eq. 2.

    Args:
      chosen_scores: [B] float, of the preferred completions.
      rejected_scores: [B] float.
      margin: [B] float in score units, by how much the preferred one should win; None:
        0.

    Returns:
      [B] float32 nats. No mask: pairs are independent of one another.

    >>> loss = pairwise_reward_loss(jnp.array([1.0]), jnp.array([1.0]))
    >>> round(loss.item(), 3)  # log 2
    0.693
    """
    chex.assert_rank([chosen_scores, rejected_scores], 1)
    chex.assert_equal_shape([chosen_scores, rejected_scores])
    lead = chosen_scores.astype(jnp.float32) - rejected_scores.astype(jnp.float32)
    if margin is not None:
        chex.assert_equal_shape([chosen_scores, margin])
        lead = lead - margin.astype(jnp.float32)
    return jax.nn.softplus(-lead)


def centering_loss(
    chosen_scores: Array, rejected_scores: Array, *, coef: float = 0.01
) -> Array:
    """Keeps the scores of a pair around 0: coef · (s_chosen + s_rejected)².

    Eisenstein et al. 2023, arXiv:2312.09244, eq. 2: added to ``pairwise_reward_loss``,
    which sees differences only and leaves a constant a prompt open. TRL's
    ``center_rewards_coefficient`` is the same.

    Args:
      chosen_scores: [B] float, of the preferred completions.
      rejected_scores: [B] float.
      coef: weight beside the pairwise loss, 1/score².

    Returns:
      [B] float32. No mask: pairs are independent of one another.

    >>> centering_loss(jnp.array([1.0]), jnp.array([2.0]), coef=0.5).tolist()
    [4.5]
    """
    chex.assert_rank([chosen_scores, rejected_scores], 1)
    chex.assert_equal_shape([chosen_scores, rejected_scores])
    total = chosen_scores.astype(jnp.float32) + rejected_scores.astype(jnp.float32)
    return coef * jnp.square(total)


def regression_reward_loss(scores: Array, targets: Array) -> Array:
    """Squared error of a reward model that is told its scores: (s − y)².

    Wang et al. 2024 (HelpSteer2), arXiv:2406.08673.

    Args:
      scores: [B] float.
      targets: [B] float, what people gave, in score units.

    Returns:
      [B] float32 score². No mask: rows are independent of one another.

    >>> regression_reward_loss(jnp.array([1.0]), jnp.array([3.0])).tolist()
    [4.0]
    """
    chex.assert_rank([scores, targets], 1)
    chex.assert_equal_shape([scores, targets])
    return jnp.square(scores.astype(jnp.float32) - targets.astype(jnp.float32))


def ranking_reward_loss(scores: Array, ranks: Array) -> Array:
    """Plackett–Luce negative log-likelihood of a ranking, ties allowed.

    L = Σᵢ (log Σⱼ∈R(i) e^sⱼ − sᵢ), R(i) = completions ranked no better than i.

    Plackett 1975, "The analysis of permutations". Ties as in Breslow 1974: each tied
    completion is drawn against all that are ranked no better than it, the tied ones
    included. With K = 2 and no tie this is ``pairwise_reward_loss``. No arXiv
    reference.

    Args:
      scores: [B, K] float.
      ranks: [B, K] int; 0 is best, equal ranks are ties, gaps do not matter; a negative
        rank says that there is no such completion.

    Returns:
      [B] float32 nats a ranking. Completions with a negative rank are masked; a row
      with fewer than two others is 0.

    >>> scores, ranks = jnp.array([[0.0, 0.0, 9.0]]), jnp.array([[0, 1, -1]])
    >>> round(ranking_reward_loss(scores, ranks).item(), 3)  # log 2, as for a pair
    0.693
    """
    chex.assert_rank([scores, ranks], 2)
    chex.assert_equal_shape([scores, ranks])
    chex.assert_type(ranks, int)
    present = ranks >= 0
    scores = jnp.where(present, scores, 0.0).astype(jnp.float32)
    no_better = ranks[:, None, :] >= ranks[:, :, None]  # [B, i, j]
    against = no_better & present[:, :, None]
    # An absent completion is drawn against itself alone: log e^s - s = 0, also as a
    # gradient, where an empty set would give NaN.
    against = against | jnp.eye(scores.shape[1], dtype=bool)[None]
    rivals = jnp.where(against, scores[:, None, :], -jnp.inf)
    return jnp.sum(jax.nn.logsumexp(rivals, axis=-1) - scores, axis=-1)


def choice_reward_loss(scores: Array, choice: Array) -> Array:
    """Cross-entropy of the best of K completions: log Σⱼ e^sⱼ − s_choice.

    Ziegler et al. 2019, arXiv:1909.08593, eq. 1.

    Args:
      scores: [B, K] float.
      choice: [B] int, index of the chosen completion, 0 … K - 1; others get NaN.

    Returns:
      [B] float32 nats. No mask: rows are independent of one another.

    >>> loss = choice_reward_loss(jnp.zeros((1, 4)), jnp.array([2]))
    >>> round(loss.item(), 3)  # log 4
    1.386
    """
    chex.assert_rank([scores, choice], [2, 1])
    chex.assert_equal_shape_prefix([scores, choice], 1)
    chex.assert_type(choice, int)
    # Negative indices would count from the end of the row; K is outside it.
    choice = jnp.where(choice < 0, scores.shape[1], choice)
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        scores.astype(jnp.float32), choice
    )


def binary_reward_loss(logits: Array, labels: Array) -> Array:
    """Cross-entropy of a good/bad classifier: log Σⱼ e^zⱼ − z_label.

    No reference.

    Args:
      logits: [B, 2] float; class 0 is bad, class 1 is good.
      labels: [B] int, 0 or 1; others get NaN.

    Returns:
      [B] float32 nats. No mask: rows are independent of one another.

    >>> loss = binary_reward_loss(jnp.zeros((1, 2)), jnp.array([1]))
    >>> round(loss.item(), 3)  # log 2
    0.693
    """
    chex.assert_shape(logits, (None, 2))
    return choice_reward_loss(logits, labels)


def binary_reward(
    logits: Array, *, kind: Literal["logit", "probability"] = "logit"
) -> Array:
    """The reward that a good/bad classifier gives: z₁, or p₁ = σ(z₁ − z₀).

    No reference.

    Args:
      logits: [B, 2] float; class 0 is bad, class 1 is good.
      kind: "logit" for z₁ (unbounded), "probability" for p₁ (between 0 and 1).

    Returns:
      [B] float32. No mask: rows are independent of one another.

    Raises:
      ValueError: if kind is neither.

    >>> binary_reward(jnp.array([[0.0, 2.0]])).tolist()
    [2.0]
    """
    chex.assert_shape(logits, (None, 2))
    return label_reward(logits, label=1, kind=kind)


def label_reward(
    logits: Array, *, label: int, kind: Literal["logit", "probability"] = "logit"
) -> Array:
    """The reward that a classifier gives for a label: z_l, or p_l = e^z_l / Σⱼ e^zⱼ.

    No reference. The logit of "not hate" is TRL's reward for detoxification.

    Args:
      logits: [B, N] float, N ≥ 2 labels.
      label: l, which of them is good; 0 … N - 1.
      kind: "logit" for z_l (unbounded), "probability" for p_l (between 0 and 1).

    Returns:
      [B] float32. No mask: rows are independent of one another.

    Raises:
      ValueError: if kind is neither, or there is no such label.

    >>> label_reward(jnp.zeros((1, 4)), label=2, kind="probability").tolist()
    [0.25]
    """
    chex.assert_rank(logits, 2)
    count = logits.shape[1]
    if not 0 <= label < count:
        raise ValueError(f"label_reward: label = {label}, expected 0 … {count - 1}")
    logits = logits.astype(jnp.float32)
    match kind:
        case "logit":
            return logits[:, label]
        case "probability":
            others = [i for i in range(count) if i != label]
            rest = jax.nn.logsumexp(logits[:, jnp.array(others)], axis=1)
            return jax.nn.sigmoid(logits[:, label] - rest)
        case _:
            raise ValueError(
                f"label_reward: kind = {kind!r}, expected logit or probability"
            )


def pairwise_accuracy(chosen_scores: Array, rejected_scores: Array) -> Array:
    """Whether the preferred completion has the higher score: 1, 0, or ½ for a tie.

    No reference.

    Args:
      chosen_scores: [B] float, of the preferred completions.
      rejected_scores: [B] float.

    Returns:
      [B] float32. No mask: pairs are independent of one another; NaN scores give NaN.

    >>> pairwise_accuracy(jnp.array([2.0, 1.0, 0.0]), jnp.ones(3)).tolist()
    [1.0, 0.5, 0.0]
    """
    chex.assert_rank([chosen_scores, rejected_scores], 1)
    chex.assert_equal_shape([chosen_scores, rejected_scores])
    lead = chosen_scores.astype(jnp.float32) - rejected_scores.astype(jnp.float32)
    return 0.5 * (1.0 + jnp.sign(lead))
