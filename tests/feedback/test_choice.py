"""Active choice: what an ensemble disagrees about is asked, and is worth its labels."""

import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax.feedback import choose_pairs


def scores_of(gaps: list[list[float]]) -> np.ndarray:
    """[M, N, 2] from the models' differences of scores."""
    first = np.array(gaps, float)
    return np.stack([first, np.zeros_like(first)], axis=-1)


def test_the_most_contested_first():
    """σ of 0 and ±log 3 is 1/2, 3/4, 1/4: the deviations are 0, 1/8 and 1/4."""
    gap = np.log(3)
    scores = scores_of([[0, 0, -gap], [0, gap, gap]])
    assert choose_pairs(scores, 3).tolist() == [2, 1, 0]
    # Far apart in score, but of one mind: nothing to ask.
    sure = scores_of([[9, 0.2], [30, -0.2]])
    assert choose_pairs(sure, 1).tolist() == [1]


def test_never_twice_and_never_again():
    scores = np.random.default_rng(1).normal(size=(3, 20, 2))
    asked = np.arange(20) < 8
    chosen = choose_pairs(scores, 12, asked=asked)
    assert sorted(chosen) == list(range(8, 20))
    agreed = np.zeros((3, 20, 2))  # they agree about everything: still 12 others
    assert choose_pairs(agreed, 12, asked=asked).tolist() == list(range(8, 20))
    with pytest.raises(ValueError, match="count = 13: expected at most 12"):
        choose_pairs(scores, 13, asked=asked)
    with pytest.raises(ValueError, match=r"shape \(3, 20\): expected \[M, N, 2\]"):
        choose_pairs(scores[:, :, 0], 1)


def test_scores_of_any_size():
    with np.errstate(all="raise"):
        chosen = choose_pairs(scores_of([[1e6, 1e6], [1e6, -1e6]]), 1)
    assert chosen.tolist() == [1]


def fit(words: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Weights of a Bradley–Terry model of word counts, on a bootstrap of the labels."""
    rows = rng.integers(len(words), size=len(words))
    weights = 0.3 * rng.normal(size=words.shape[1])
    for _ in range(60):
        error = labels[rows] - expit(words[rows] @ weights)
        weights += 0.5 * (words[rows].T @ error / len(rows) - 0.003 * weights)
    return weights


def learn(choice: str, seed: int, rounds: int) -> list[float]:
    """Held-out accuracy after each round of 20 labels.

    Nine in ten pairs of the pool differ in the first three of forty words alone; those
    held out in any.
    """
    rng = np.random.default_rng(seed)
    true = rng.normal(size=40)

    def pairs(count: int, repeated: float) -> np.ndarray:
        common = rng.random((count, 1)) < repeated
        reach = np.where(common, 3, 40)
        words = [
            sign * np.eye(40)[(rng.random((count, 1)) * reach).astype(int)[:, 0]]
            for sign in (1, 1, -1, -1)
        ]
        return np.sum(words, axis=0)

    pool, held_out = pairs(1500, 0.9), pairs(600, 0.0)
    labels = (pool @ true > 0).astype(float)
    asked, found = np.arange(1500) < 20, []
    for _ in range(rounds):
        members = [fit(pool[asked], labels[asked], rng) for _ in range(4)]
        mean = np.mean([held_out @ weights for weights in members], axis=0)
        found.append(float(np.mean((mean > 0) == (held_out @ true > 0))))
        gaps = [(pool @ weights).tolist() for weights in members]
        if choice == "active":
            new = choose_pairs(scores_of(gaps), 20, asked=asked)
        else:
            new = rng.choice(np.flatnonzero(~asked), 20, replace=False)
        asked[new] = True
    return found


def test_fewer_labels_for_the_same_accuracy():
    """Six rounds by disagreement against ten at random: at most 60 % of the labels."""
    active = np.mean([learn("active", seed, 6)[-1] for seed in range(4)])
    at_random = np.mean([learn("random", seed, 10)[-1] for seed in range(4)])
    assert active >= at_random
