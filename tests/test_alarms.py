"""Which alarms ring, when, and that only what has been seen decides."""

import dataclasses
import math

import numpy as np
import pytest

from rlhf_jax.alarms import AlarmConfig, alarms, next_alarm
from rlhf_jax.errors import UserError

NAMES = {
    "repetition": "rollout/repetition",
    "length": "rollout/response_length",
    "disagreement": "objective/disagreement",
    "referee": "objective/referee",
    "score": "objective/score",
    "entropy": "objective/entropy",
}


def rows(**values):
    """Iterations with these numbers, one a column."""
    names = [NAMES[name] for name in values]
    columns = zip(*values.values(), strict=True)
    return [
        {"step": step} | dict(zip(names, numbers, strict=True))
        for step, numbers in enumerate(columns, 1)
    ]


PLAIN = AlarmConfig(window=2)


def rung(config=PLAIN, **values):
    return [(a.step, *a.kinds) for a in alarms(rows(**values), config)]


# The means of two iterations; the first two are what a run began with.
@pytest.mark.parametrize(
    "kind, options, values, step",
    [
        # Means 0.1, …, 0.15, 0.25: the last is more than 0.1 above the first.
        ("repetition", {"repetition": 0.1}, [0.1, 0.1, 0.1, 0.1, 0.2, 0.3], 6),
        ("length", {"length": 2.0}, [10, 10, 10, 20, 20, 22], 6),
        ("length", {"length": 2.0}, [10, 10, 10, 5, 5, 4], 6),
        ("disagreement", {"disagreement": 3.0}, [1, 1, 1, 3, 3, 3.5], 6),
    ],
)
def test_what_is_now_is_compared_with_the_beginning(kind, options, values, step):
    config = AlarmConfig(window=2, **options)
    assert rung(config, **{kind: values}) == [(step, kind)]
    assert rung(config, **{kind: values[: step - 1]}) == []
    off = dataclasses.replace(config, **{kind: None})
    assert rung(off, **{kind: values}) == []
    nan = [*values[:-1], math.nan]
    assert rung(config, **{kind: nan}) == []


def test_entropy_is_that_of_a_token():
    """Responses a third as long have a third of the entropy, and none has collapsed."""
    length = [12.0, 12.0, 12.0, 4.0, 4.0, 4.0]
    config = AlarmConfig(window=2, length=None, entropy=0.5)
    whole = [2 * x for x in length]
    assert rung(config, length=length, entropy=whole) == []
    less = [*whole[:4], 3.0, 3.0]  # 2 nats a token, then ¾
    assert rung(config, length=length, entropy=less) == [(6, "entropy")]


def test_two_windows_are_needed():
    assert rung(AlarmConfig(window=3), repetition=[0, 0, 1, 1, 1]) == []
    assert rung(AlarmConfig(window=3), repetition=[0, 0, 0, 1, 1, 1])[0][0] == 6


def test_after_an_alarm_there_is_none_for_a_window():
    values = [0.0, 0.0, *[0.5] * 8]
    assert [step for step, *_ in rung(repetition=values)] == [4, 6, 8, 10]


def test_several_ring_at_once_in_one_line():
    [alarm] = alarms(
        rows(repetition=[0, 0, 1, 1], length=[5, 5, 20, 20]), AlarmConfig(window=2)
    )
    assert alarm.kinds == ("repetition", "length")
    assert alarm.text == "repetition 1, was 0; length 20, was 5"


# The referee. Its noise is that of neighbours, 0 on a straight line.

UP = np.arange(1.0, 13.0)


def test_a_referee_that_falls_while_the_score_rises():
    """Windows of 2 have 0.5, 1.5, … 4.5, 5, 4.5, 3.5, …: a rise of 4.5."""
    referee = [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]
    values = {"referee": referee, "score": UP}
    # More than a quarter of it is lost at the second fall.
    found = alarms(rows(**values), AlarmConfig(window=2, referee=0.25))
    assert found[0][:2] == (9, ("referee",))
    assert found[0].text == "referee 3.5, was 5, while the score rose"
    assert rung(AlarmConfig(window=2, referee=0.8), **values)[0][0] == 12
    assert rung(AlarmConfig(window=2, referee=None), **values) == []
    falls = [*UP[:6], 5, 4, 3, 2, 1, 0]
    assert rung(referee=referee, score=falls) == []  # it falls as the score does


def test_noise_of_the_referee_rings_no_alarm():
    """It never rises, and a share of nothing is nothing."""
    for seed in range(20):
        referee = np.random.default_rng(seed).normal(size=60)
        found = rung(AlarmConfig(), referee=referee, score=np.arange(60.0))
        assert found == []


def test_noise_is_judged_by_three_iterations():
    config = AlarmConfig(window=1)
    assert rung(config, referee=[1.0, 0.0], score=[0.0, 1.0]) == []


def test_a_missing_number_hides_one_iteration_alone():
    referee = [1, 2, 3, math.nan, 4, 5, 6, 5, 4, 3, 2, 1]
    assert rung(referee=referee, score=UP)[0][1] == "referee"


def test_step_by_step_is_all_at_once():
    """What is told after each iteration is what is read back from all of them."""
    rng = np.random.default_rng(0)
    values = {name: rng.exponential(size=60).cumsum() / 9 for name in NAMES}
    found, history, config = [], rows(**values), AlarmConfig(window=3)
    for count in range(1, len(history) + 1):
        if alarm := next_alarm(history[:count], config, found):
            found.append(alarm)
    assert found == alarms(history, config) and len(found) > 3
    cut = found[1].step
    assert alarms(history[:cut], config) == found[:2]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"on_alarm": "shout"}, "alarm.on_alarm = 'shout': expected warn, soften"),
        ({"window": 0}, "alarm.window = 0: expected 1 or more"),
        ({"factor": 1.0}, "alarm.factor = 1.0: expected more than 1"),
        ({"disagreement": math.inf}, "alarm.disagreement = inf: expected more than 1"),
        ({"entropy": 0.0}, "alarm.entropy = 0.0: expected a share above 0"),
        ({"referee": 1.5}, "alarm.referee = 1.5: expected a share above 0, to 1"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(UserError, match=words):
        AlarmConfig(**options)
