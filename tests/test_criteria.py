"""When a run ends: target, budget, plateau."""

import math

import numpy as np
import pytest

from rlhf_jax.criteria import Criteria, StopConfig, stop_reason
from rlhf_jax.errors import UserError


def rows(scores, kl=0.0):
    return [{"objective/score": s, "objective/kl": kl} for s in scores]


def ends(scores, **options):
    """The first iteration after which a run ends; 0 for none."""
    config = StopConfig(**options)
    counts = range(1, len(scores) + 1)
    return next((n for n in counts if stop_reason(rows(scores[:n]), config)), 0)


def test_by_default_nothing_ends_a_run():
    assert ends([0.0, 9.0, *[1.0] * 500]) == 0
    assert stop_reason([], StopConfig(score=0.0, kl=1.0, patience=1)) is None


def test_a_target_is_reached_by_one_iteration():
    assert ends([0.1, 0.49, 0.5, 0.2], score=0.5) == 3
    assert ends([0.1, math.nan, 0.4], score=0.5) == 0


def test_a_budget_is_not_exceeded():
    found = [stop_reason(rows([0.0], kl), StopConfig(kl=3.0)) for kl in (2.9, 3.0, 3.1)]
    assert found[:2] == [None, None]
    assert found[2] == "kl budget: objective/kl = 3.1 nats a response, above 3.0"


@pytest.mark.parametrize(
    "scores, patience, min_delta, last",
    [
        # The best, 3, is of iteration 2: 3 without a better one are over after 5.
        ([1, 3, 2, 3, 2, 2], 3, 0.0, 5),
        # Each is better than the one before, but not by more than a half.
        ([1, 1.25, 1.5, 1.75, 2.0], 2, 0.5, 3),
        ([1, 2, 3, 4, 5], 1, 0.0, 0),
        ([1, 2, math.nan, 1, 1], 3, 0.0, 5),
        ([math.nan, 1, 1, 1], 2, 0.0, 4),
        ([1], 1, 0.0, 0),
    ],
)
def test_a_plateau_is_no_better_score_for_a_while(scores, patience, min_delta, last):
    assert ends(scores, patience=patience, min_delta=min_delta) == last


def test_a_score_is_looked_at_once():
    """Random walks with gaps: a plateau is where looking at all of them finds one."""
    rng = np.random.default_rng(0)
    best = lambda part: max((x for x in part if x == x), default=math.nan)
    for patience in (1, 3, 7):
        scores = rng.normal(size=80).cumsum()
        scores[rng.integers(0, 80, 9)] = math.nan
        criteria = Criteria(StopConfig(patience=patience, min_delta=0.3))
        for count, row in enumerate(rows(scores), 1):
            criteria.add(row)
            row.clear()  # it is not asked again
            cut = max(count - patience, 0)
            before, since = best(scores[:cut]), best(scores[cut:count])
            assert (criteria.reason() is not None) == (since <= before + 0.3)


def test_the_reason_names_its_criterion():
    config = StopConfig(score=2.0, patience=1)
    assert "target score: " in (stop_reason(rows([1, 2]), config) or "")
    found = stop_reason(rows([1, 0]), config)
    assert found == "plateau: no score above 1 in the last 1 iterations"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"score": math.nan}, "stop.score = nan: expected a number"),
        ({"kl": 0.0}, "stop.kl = 0.0: expected nats a response above 0"),
        ({"patience": 0}, "stop.patience = 0: expected 1 or more"),
        ({"patience": 1, "min_delta": -1.0}, "stop.min_delta = -1.0: expected 0"),
        ({"min_delta": 0.1}, "stop.min_delta = 0.1: an option of stop.patience"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(UserError, match=words):
        StopConfig(**options)
