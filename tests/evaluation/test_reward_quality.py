"""Accuracy by margin, calibration, correlations and edits, against loops and scipy."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr

from rlhf_jax.evaluation import (
    EDITS,
    accuracy_by_margin,
    calibration,
    correlation,
    edit_robustness,
    gold_agreement,
    pair_accuracy,
    pair_calibration,
)


def test_reliability_against_a_loop():
    rng = np.random.default_rng(0)
    p, y = rng.random(500), rng.integers(0, 3, size=500) / 2
    p[:2] = 0.0, 1.0  # the ends belong to bins, too
    found = calibration(p, y, bins=7)
    error = 0.0
    for b in found.bins:
        own = (p >= b.low) & ((p < b.high) | (b.high == 1))
        assert b.size == own.sum()
        assert (b.predicted, b.observed) == pytest.approx(
            (p[own].mean(), y[own].mean())
        )
        error += own.mean() * abs(p[own].mean() - y[own].mean())
    assert sum(b.size for b in found.bins) == 500
    assert found.ece == pytest.approx(error)
    assert found.brier == pytest.approx(sum((p - y) ** 2) / 500)


def test_a_calibrated_model_has_the_error_of_chance():
    """Bradley–Terry is the truth; twice the score is too sure of itself."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=4000)
    d = np.where(rng.random(4000) < expit(score), score, -score)
    found, too_sure = pair_calibration(d), pair_calibration(2 * d)
    assert found.ece < 1.5 * found.ece_by_chance < 0.05 < too_sure.ece
    assert found.brier < too_sure.brier
    # The order in which a pair is named says nothing: both ways give one error.
    both = calibration(expit([*d, *-d]), np.repeat([1.0, 0.0], 4000), bins=20)
    assert both.ece == pytest.approx(found.ece)
    assert both.brier == pytest.approx(found.brier)


def test_calibration_refuses_and_says_nothing_of_nothing():
    with pytest.raises(ValueError, match="0.5 to 1"):
        calibration(np.array([0.4]), np.array([1.0]), low=0.5)
    with pytest.raises(ValueError, match=r"expected \[P\]"):
        calibration(np.array([0.4]), np.zeros(2))
    assert np.isnan(calibration(np.zeros(0), np.zeros(0)).ece)


def test_margins_are_bins_of_equal_size():
    rng = np.random.default_rng(0)
    d, groups = rng.normal(0.5, 1, size=200), np.arange(200) // 2
    for margins in (None, rng.random(200)):
        found = accuracy_by_margin(d, groups, margins=margins, bins=4)
        assert [b.size for b in found] == [50] * 4
        of = np.abs(d) if margins is None else margins
        for i, b in enumerate(found):
            own = ((of > b.low) | ((i == 0) & (of == b.low))) & (of <= b.high)
            assert b.accuracy.value == np.mean(d[own] > 0)
            assert b.accuracy.low < b.accuracy.value < b.accuracy.high
    tied = accuracy_by_margin(d, groups, margins=np.repeat([0.0, 1.0], 100), bins=4)
    assert [(b.low, b.high, b.size) for b in tied] == [(0, 1, 200)]
    [same] = accuracy_by_margin(d, groups, margins=np.zeros(200))
    assert same.size == 200 and same.accuracy == pair_accuracy(d, groups)
    assert accuracy_by_margin(np.zeros(0), np.zeros(0)) == []


def test_correlations_are_scipy_s_and_vary_with_groups():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, size=60).astype(float)
    y = x + rng.normal(0, 3, size=60)
    for rank, oracle in ((False, pearsonr), (True, spearmanr)):
        found = correlation(x, y, np.arange(60), rank=rank, rng=rng, resamples=300)
        assert found.value == pytest.approx(oracle(x, y)[0])
        assert found.low < found.value < found.high
        # Every row four times, within its group: nobody becomes surer of it.
        four = np.repeat(np.arange(60), 4)
        copied = correlation(x[four], y[four], four, rank=rank, rng=rng, resamples=300)
        assert copied.value == pytest.approx(found.value)
        width = (copied.high - copied.low) / (found.high - found.low)
        assert 0.8 < width < 1.25
    flat = correlation(0 * x, y, np.arange(60), rank=True, rng=rng, resamples=2)
    assert np.isnan(flat).all()


def test_agreement_with_gold_against_a_loop():
    rng = np.random.default_rng(0)
    scores, gold = rng.integers(0, 6, (12, 5)), rng.integers(0, 4, (12, 5))
    gold[0] = 1  # tells nothing
    right = []
    for s, g in zip(scores, gold, strict=True):
        right += [
            (np.sign((s[i] - s[j]) * (g[i] - g[j])) + 1) / 2
            for i in range(5)
            for j in range(i)
            if g[i] != g[j]
        ]
    found = gold_agreement(scores, gold, rng=rng, resamples=100)
    assert found.pairs == len(right)
    assert found.pairwise.value == pytest.approx(np.mean(right))
    assert found.spearman.value == pytest.approx(
        spearmanr(scores.ravel(), gold.ravel())[0]
    )
    rows = zip(scores[1:], gold[1:], strict=True)
    each: Any = [spearmanr(*row)[0] for row in rows]
    assert found.spearman_within.value == pytest.approx(np.mean(each))


def test_an_edit_is_measured_where_it_changed_something():
    scores = np.array([[2.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    edited = scores + [[0.0, 1.5], [0.0, 9.0], [0.0, 0.0]]
    changed = np.array([[True, True], [True, False], [False, False]])
    found = edit_robustness(scores, edited, changed, np.arange(3))
    assert found.texts == 3
    assert found.shift == pytest.approx(0.5 / scores.std())
    # Of the three orders with one side edited, 2 > 1 + 1.5 alone is another one.
    assert found.flips.value == pytest.approx(1 / 3)
    nothing = edit_robustness(scores, scores, changed & False, np.arange(3))
    assert np.isnan([nothing.shift, nothing.flips.value]).all()
    none = np.zeros((0, 2))
    assert np.isnan(edit_robustness(none, none, none > 0, np.arange(0)).change)
    lower = edit_robustness(scores, scores - 1, changed | True, np.arange(3))
    assert lower.shift == -lower.change == pytest.approx(-1 / scores.std())


def test_edits_change_the_look_alone():
    text = " the plot was good ."
    edited = {name: edit(text) for name, edit in EDITS.items()}
    assert len({text, *edited.values()}) == len(EDITS) + 1
    letters = lambda text: "".join(filter(str.isalnum, text)).lower()
    assert {letters(t) for t in edited.values()} == {letters(text)}
    assert edited["first letter a capital"] == " The plot was good ."
    assert [edit("") for edit in EDITS.values()] == [" ", "\n", "", "", "", ""]
