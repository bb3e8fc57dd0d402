"""Verdicts: positions cancel, disagreement is seen, pairs and rankings follow."""

import math
import random

import numpy as np
import pytest

from rlhf_jax.feedback import (
    first_bias,
    model_verdicts,
    preferred,
    ranking_votes,
    reward_verdicts,
    swap_consistency,
    verdict_preferences,
    verdict_ranking,
)


def judge_of(scores: dict[str, float], bias: float):
    """A judge that is fair but for a bias towards what is shown first.

    Its questions are "first|second"; P(first) = σ(score₁ − score₂ + bias).
    """

    def ask(questions, answers):
        assert list(answers) == [" A", " B"]
        both = [question.split("|") for question in questions]
        lead = np.array([scores[a] - scores[b] + bias for a, b in both])
        return np.stack([-np.log1p(np.exp(-lead)), -np.log1p(np.exp(lead))], axis=1)

    return ask


def verdict_of(scores: dict[str, float], bias: float = 0.0) -> np.ndarray:
    form = lambda item, first, second: f"{first}|{second}"
    [verdict] = model_verdicts(judge_of(scores, bias), [[*scores]], form=form)
    return verdict


def test_a_verdict_is_what_the_judge_said_of_each_order():
    """By hand: scores 1 and 0, bias ½: σ(1.5) with the better one first, else σ(−½)."""
    verdict = verdict_of({"good": 1.0, "bad": 0.0}, bias=0.5)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    expected = [[0.5, sigmoid(1.5)], [sigmoid(-0.5), 0.5]]
    np.testing.assert_allclose(verdict, expected, rtol=1e-12)


def test_each_item_has_its_own_question():
    asked = []
    form = lambda item, first, second: f"{item}: {first} {second}"
    ask = lambda questions, answers: (
        asked.extend(questions) or np.log(np.full((len(questions), 2), 0.5))
    )
    verdicts = model_verdicts(ask, [["a", "b"], ["c", "d", "e"]], form=form)
    assert [v.shape for v in verdicts] == [(2, 2), (3, 3)]
    pairs = ["0: a b", "0: b a", "1: c d", "1: c e", "1: d c", "1: d e"]
    assert asked == [*pairs, "1: e c", "1: e d"]


def test_nothing_to_judge_asks_nobody():
    assert model_verdicts(None, [], form=None) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [-4.0, -0.3, 0.0, 0.3, 4.0])
def test_positions_cancel(bias):
    """However biased, the better one is preferred, and p_ij + p_ji = 1."""
    scores = {text: random.Random(text).random() for text in "abcde"}
    better = preferred(verdict_of(scores, bias))
    np.testing.assert_allclose(better + better.T, 1.0, atol=1e-12)
    values = np.array([*scores.values()])
    lead = values[:, None] - values[None]
    off = ~np.eye(5, dtype=bool)
    assert np.array_equal(better[off] > 0.5, lead[off] > 0)


def test_consistency_falls_with_the_bias():
    """Of pairs 1, 2 and 3 apart (three, two and one of them) a bias of 1.5 turns the
    nearest ones: 3 of 6 stay."""
    scores = {text: float(i) for i, text in enumerate("abcd")}
    assert swap_consistency([verdict_of(scores)]) == 1.0
    assert swap_consistency([verdict_of(scores, bias=1.5)]) == 0.5
    assert swap_consistency([verdict_of(scores, bias=9.0)]) == 0.0
    assert first_bias([verdict_of(scores)]) == pytest.approx(0.0)
    assert first_bias([verdict_of(scores, bias=9.0)]) > 0.49
    assert first_bias([verdict_of(scores, bias=-9.0)]) < -0.49


def test_consistency_counts_pairs_not_items():
    """One pair that agrees, three that do not."""
    fair = verdict_of({"a": 0.0, "b": 1.0})
    biased = verdict_of({"a": 0.0, "b": 0.0, "c": 0.0}, bias=1.0)
    assert swap_consistency([fair, biased]) == 0.25


def test_without_pairs_nothing_is_claimed():
    assert math.isnan(swap_consistency([])) and math.isnan(first_bias([]))


def test_a_reward_names_the_higher_and_ties():
    reward = lambda *, prompts, completions: [
        len(c) + len(p) for p, c in zip(prompts, completions, strict=True)
    ]
    verdicts = reward_verdicts(reward, ["p", "qq"], [["a", "bb", "c"], ["d", "ee"]])
    assert verdicts[0].tolist() == [[0.5, 0, 0.5], [1, 0.5, 1], [0.5, 0, 0.5]]
    assert verdicts[1].tolist() == [[0.5, 0], [1, 0.5]]
    assert swap_consistency(verdicts) == 1.0


def test_preferences_weigh_by_the_lead():
    """p_ab = (0.9 + 1 − 0.3)/2 = 0.8, lead 0.6; p_ac = ½: left out; p_cb = 1: lead 1.

    Three pairs: weights are a third of the leads.
    """
    verdict = np.array([[0.5, 0.9, 0.4], [0.3, 0.5, 0.0], [0.4, 1.0, 0.5]])
    found = verdict_preferences("p", ["a", "b", "c"], verdict, origin="file:1")
    assert [(x.chosen, x.rejected) for x in found] == [("a", "b"), ("c", "b")]
    assert [x.weight for x in found] == pytest.approx([0.2, 1 / 3])
    assert {(x.prompt, x.origin, x.annotator) for x in found} == {("p", "file:1", -1)}


def test_the_slope_at_zero_is_that_of_the_soft_label():
    """d/dd of −(2p − 1) log σ(d) and of −p log σ(d) − (1 − p) log σ(−d), at d = 0."""
    verdict = np.array([[0.5, 0.7], [0.2, 0.5]])
    p = preferred(verdict)[0, 1]
    [pair] = verdict_preferences("p", ["a", "b"], verdict)
    log_sigmoid = lambda d: -np.log1p(np.exp(-d))
    soft = lambda d: -p * log_sigmoid(d) - (1 - p) * log_sigmoid(-d)
    hard = lambda d: -pair.weight * log_sigmoid(d)
    slope = lambda f: (f(1e-4) - f(-1e-4)) / 2e-4
    assert slope(hard) == pytest.approx(slope(soft), abs=1e-8)


def test_a_judge_is_one_more_annotator():
    scores = {"a": 0.0, "b": 2.0, "c": 1.0, "d": 2.0}
    ranking = verdict_ranking("p", [*scores], verdict_of(scores), annotator=5)
    assert ranking.ranks == (2, 0, 1, 0)
    judged = ranking_votes([ranking])
    assert judged.annotators == [5] and len(judged.units) == 12
