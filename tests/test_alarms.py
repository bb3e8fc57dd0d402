"""Which alarms ring, when, and that only what has been seen decides."""

import dataclasses
import math

import numpy as np
import pytest

from rlhf_jax.alarms import AlarmConfig, Alarms, alarms
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


class Counted(dict):
    """An iteration that counts how often it is asked for a number."""

    asked = 0

    def __getitem__(self, name):
        Counted.asked += 1
        return super().__getitem__(name)


def slow_alarms(history, config):
    """The definition once more: every iteration looks at all of those before it."""
    found, window = [], config.window
    mean = lambda part, value: np.mean([value(row) for row in part])
    asked = lambda name: lambda row: row.get(NAMES[name], math.nan)
    a_token = lambda row: asked("entropy")(row) / asked("length")(row)
    for count in range(2 * window, len(history) + 1):
        rows, kinds = history[:count], []
        if found and count < found[-1][0] + window:
            continue
        was, now = (
            {
                **{name: mean(part, asked(name)) for name in NAMES},
                "entropy": mean(part, a_token),
            }
            for part in (rows[:window], rows[-window:])
        )
        change = {name: now[name] / was[name] for name in NAMES if was[name]}
        if now["repetition"] - was["repetition"] > config.repetition:
            kinds.append("repetition")
        if change["entropy"] < config.entropy:
            kinds.append("entropy")
        if max(change["length"], 1 / change["length"]) > config.length:
            kinds.append("length")
        if change["disagreement"] > config.disagreement:
            kinds.append("disagreement")
        judged = [[asked(name)(row) for name in ("referee", "score")] for row in rows]
        judged = np.array([pair for pair in judged if not np.isnan(pair).any()])
        if len(judged) >= max(2 * window, 3):
            ends = range(window, len(judged) + 1)
            referee, score = np.array([judged[e - window : e].mean(0) for e in ends]).T
            top = np.argmax(referee)
            noise = np.median(np.abs(np.diff(judged[:, 0], n=2))) / 0.6745 / 6**0.5
            least = config.referee * (referee[top] - referee[0])
            least = max(least, 5 * noise * (2 / window) ** 0.5)
            if referee[top] - referee[-1] > least and score[-1] > score[top]:
                kinds.append("referee")
        if kinds:
            found.append((count, *kinds))
    return found


@pytest.mark.parametrize("window", [1, 2, 5])
def test_looking_at_one_iteration_decides_as_looking_at_all(window):
    """Random walks, with iterations that have no number; cut, too, as a run may be."""
    config, seen = AlarmConfig(window=window), set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        steps = np.arange(60)
        values: dict = {name: np.exp(rng.normal(size=60) / 9) for name in NAMES}
        values["repetition"] = steps / 300 + rng.uniform(0, 0.15, 60)
        values["length"] *= 9 + steps / rng.uniform(4, 20)
        values["score"] = steps + rng.normal(size=60)
        top = rng.integers(10, 50)
        values["referee"] = -np.abs(steps - top) + rng.normal(size=60) / 3
        for name in ("repetition", "referee"):
            values[name][rng.integers(0, 60, 3)] = math.nan
        history = rows(**{name: x.tolist() for name, x in values.items()})
        expected = slow_alarms(history, config)
        found = [(step, *kinds) for step, kinds, _ in alarms(history, config)]
        assert found == expected
        cut = int(rng.integers(1, 60))
        before = [alarm for alarm in expected if alarm[0] <= cut]
        assert [(a.step, *a.kinds) for a in alarms(history[:cut], config)] == before
        seen |= {kind for alarm in expected for kind in alarm[1:]}
    assert seen >= {"length", "referee", "repetition"}


def test_an_iteration_costs_the_same_however_many_came_before():
    """With all kinds, none of which rings."""
    listening, costs = Alarms(AlarmConfig(window=3)), []
    for row in rows(**{name: [1.0] * 200 for name in NAMES}):
        Counted.asked = 0
        listening.add(Counted(row))
        costs.append(Counted.asked)
    assert set(costs[6:]) == {costs[-1]} and costs[-1] > 0 and not listening.rung


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
