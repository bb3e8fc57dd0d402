"""Preferences by a judge: a model that is asked, or whatever scores completions.

What a judge says of K completions is one array, its *verdict*: ``verdict[i, j]`` is the
probability that it names i where i is shown first and j second. All else follows from
that: the preference with the positions averaged out, how often the two orders agree,
and how much the first place is favoured.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations

import numpy as np

from rlhf_jax.data.records import Preference, Ranking
from rlhf_jax.rewards import RewardFunction, call_reward_function

LEAST = 0.01  # lead below which a pair is left out

Ask = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(N questions, C answers) -> [N, C] log P(answer | question), of these answers."""

Form = Callable[[int, str, str], str]
"""(item, first, second) -> the question which of the two is better."""


def model_verdicts(
    ask: Ask,
    completions: Sequence[Sequence[str]],
    *,
    form: Form,
    answers: Sequence[str] = (" A", " B"),
) -> list[np.ndarray]:
    """A model's verdicts: v_ij = P(" A" | question with i first, j second).

    Bai et al. 2022, arXiv:2212.08073, section 4.1, for the probabilities; Lee et al.
    2023, arXiv:2309.00267, for asking in both orders.

    Args:
      ask: the model, see ``assistant.make_ask``.
      completions: of each item, K of them, two or more.
      form: the question about two completions of an item, such as
        ``Constitution.preference`` with a principle drawn for the item.
      answers: what the model says for the first and for the second.

    Returns:
      For each item [K, K] float64 probabilities; the diagonal, which nobody asks about,
      is ½.

    >>> ask = lambda questions, answers: np.log([[0.9, 0.1] for _ in questions])
    >>> [verdict] = model_verdicts(
    ...     ask, [["good", "bad"]], form=lambda item, a, b: f"A: {a} B: {b} better:")
    >>> verdict.round(1).tolist()  # it always says A
    [[0.5, 0.9], [0.9, 0.5]]
    """
    verdicts = [np.full((len(texts), len(texts)), 0.5) for texts in completions]
    places = [
        (item, i, j)
        for item, texts in enumerate(completions)
        for i, j in permutations(range(len(texts)), 2)
    ]
    questions = [
        form(item, completions[item][i], completions[item][j]) for item, i, j in places
    ]
    if places:
        said = np.exp(np.asarray(ask(questions, answers), np.float64))
        for (item, i, j), p in zip(places, said[:, 0], strict=True):
            verdicts[item][i, j] = p
    return verdicts


def reward_verdicts(
    reward: RewardFunction, prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Verdicts of a reward function, a rubric for instance: v_ij = [r_i > r_j] + ½[=].

    No reference.

    Args:
      reward: a number for each prompt and completion.
      prompts: of the items.
      completions: of each item.

    Returns:
      For each item [K, K] float64.

    Raises:
      UserError: see ``call_reward_function``.

    >>> shorter = lambda *, prompts, completions: [-float(len(c)) for c in completions]
    >>> [verdict] = reward_verdicts(shorter, ["2 + 2 ="], [["4", "four", "IIII"]])
    >>> verdict.tolist()
    [[0.5, 1.0, 1.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    """
    flat = [text for texts in completions for text in texts]
    asked = [p for p, texts in zip(prompts, completions, strict=True) for _ in texts]
    scores = iter(call_reward_function(reward, asked, flat).tolist())
    verdicts = []
    for texts in completions:
        own = np.array([next(scores) for _ in texts])
        verdicts.append((np.sign(own[:, None] - own[None, :]) + 1) / 2)
    return verdicts


def preferred(verdict: np.ndarray) -> np.ndarray:
    """Positions averaged out: p_ij = (v_ij + 1 − v_ji)/2 = 1 − p_ji.

    Lee et al. 2023, arXiv:2309.00267, section 2.1.1: which answer is shown first
    matters to a model, and cancels where both orders are asked.

    Args:
      verdict: [K, K].

    Returns:
      [K, K] float64, the probability that i is better than j.

    >>> preferred(np.array([[0.5, 1.0], [1.0, 0.5]])).tolist()  # it always says A
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return (verdict + 1 - verdict.T) / 2


def swap_consistency(verdicts: Sequence[np.ndarray]) -> float:
    """The share of pairs for which both orders name the same completion.

    No reference. A verdict of exactly ½ names neither, and agrees with nothing but
    another ½. 1: positions never mattered; ½: what guessing gives.

    Args:
      verdicts: [K, K] of each item.

    Returns:
      A share; NaN without a pair.

    >>> swap_consistency([np.array([[0.5, 0.9], [0.2, 0.5]])])
    1.0
    >>> swap_consistency([np.array([[0.5, 0.9], [0.9, 0.5]])])
    0.0
    """
    agreed = [a == b for v in verdicts for a, b in _both_orders(v)]
    return float(np.mean(agreed)) if agreed else float("nan")


def first_bias(verdicts: Sequence[np.ndarray]) -> float:
    """How much more often than half the completion shown first is named.

    No reference: mean of v_ij − ½ over all ordered pairs, in [−½, ½].

    Args:
      verdicts: [K, K] of each item.

    Returns:
      0 for a judge that does not mind positions, ½ for one that always names the first;
      NaN without a pair.

    >>> first_bias([np.array([[0.5, 0.9], [0.9, 0.5]])])
    0.4
    """
    off = [v[~np.eye(len(v), dtype=bool)] for v in verdicts]
    shown = np.concatenate(off) if off else np.zeros(0)
    return float(np.mean(shown) - 0.5) if len(shown) else float("nan")


def verdict_preferences(
    prompt: str, completions: Sequence[str], verdict: np.ndarray, *, origin: str = ""
) -> list[Preference[str]]:
    """Every pair, the probable one preferred, weighed by w = (2p_ij − 1) / pairs.

    No reference. Bai et al. 2022, arXiv:2212.08073, section 4.1, train on p itself: the
    cross-entropy −p log σ(d) − (1 − p) log σ(−d). Where d = 0 its slope is that of
    −(2p − 1) log σ(d), which one row says; further out it is smaller, and 0 at the
    d that fits p. Both orders, as rows of weight p and 1 − p, are that cross-entropy,
    too, but most of what one says is taken back by the other, in another batch.

    Args:
      prompt: that was answered.
      completions: K different answers.
      verdict: [K, K].
      origin: where the item stands, for messages.

    Returns:
      At most K(K − 1)/2 preferences; a pair with 2p − 1 below 0.01 is left out.

    >>> verdict = np.array([[0.5, 0.9], [0.3, 0.5]])
    >>> for pair in verdict_preferences("p", ["a", "b"], verdict):
    ...     print(pair.chosen, pair.rejected, round(pair.weight, 2))
    a b 0.6
    """
    lead = 2 * preferred(verdict) - 1
    pairs = list(combinations(range(len(completions)), 2))
    found = []
    for i, j in pairs:
        chosen, rejected = (i, j) if lead[i, j] > 0 else (j, i)
        sure = float(lead[chosen, rejected])
        if sure >= LEAST:
            texts = completions[chosen], completions[rejected]
            weight = sure / len(pairs)
            found.append(Preference(prompt, *texts, weight=weight, origin=origin))
    return found


def verdict_ranking(
    prompt: str,
    completions: Sequence[str],
    verdict: np.ndarray,
    *,
    annotator: int,
    origin: str = "",
) -> Ranking[str]:
    """A judge as one more annotator: ranked by how many of the others i beats.

    No reference. A completion's points are Σ_j sign(p_ij − ½), Copeland's rule; equal
    points are ties.

    Args:
      prompt: that was answered.
      completions: K answers.
      verdict: [K, K].
      annotator: the judge's number among the annotators.
      origin: where the item stands, for messages.

    Returns:
      The ranking, as people give it; for ``ranking_votes`` and all that follows.

    >>> verdict = np.array([[0.5, 0.2, 0.9], [0.8, 0.5, 0.7], [0.1, 0.3, 0.5]])
    >>> verdict_ranking("p", ["a", "b", "c"], verdict, annotator=7).ranks
    (1, 0, 2)
    """
    points = np.sign(preferred(verdict) - 0.5).sum(1)
    levels = sorted({*points.tolist()}, reverse=True)
    ranks = tuple(levels.index(p) for p in points.tolist())
    return Ranking(prompt, tuple(completions), ranks, annotator, origin)


def _both_orders(verdict: np.ndarray) -> list[tuple[float, float]]:
    """(which is named with i first, and with j first) of each pair: 1 i, −1 j."""
    side = np.sign(verdict - 0.5)
    i, j = np.triu_indices(len(verdict), 1)
    return list(zip(side[i, j].tolist(), (-side[j, i]).tolist(), strict=True))
