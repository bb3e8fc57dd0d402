"""Which columns a function gets, batches, and functions that are async or late."""

import asyncio
import functools
import threading
import time

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.rewards import call_reward_function, combine_rewards

PROMPTS, COMPLETIONS = ["1+1=", "1+2=", "2+2="], ["2", "4", "4"]
COLUMNS = {"answer": ["2", "3", "4"], "source": ["a", "b", "c"]}
WAIT = 0.2  # s; what a late function is given
EVER = 30.0  # s; longer than any test


def call(function, **options):
    scores = call_reward_function(function, PROMPTS, COMPLETIONS, COLUMNS, **options)
    return scores.tolist()


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Columns.


def right(completions, answer, strict=True):
    return [float(x == y) for x, y in zip(completions, answer, strict=strict)]


def right_and_more(completions, answer, **others):
    assert others == {"prompts": PROMPTS, "source": ["a", "b", "c"]}
    return right(completions, answer)


class Right:
    def __call__(self, answer, completions):
        return right(completions, answer)


class AsyncRight:
    async def __call__(self, completions, answer, **_):
        await asyncio.sleep(0)
        return right(completions, answer)


async def async_right(completions, answer):
    return right(completions, answer)


@pytest.mark.parametrize("timeout", [None, EVER])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    "function",
    [
        right,
        Right(),
        functools.partial(right, strict=False),
        AsyncRight(),
        async_right,
        functools.partial(AsyncRight()),
    ],
)
def test_a_function_gets_what_it_names(function, batch_size, timeout):
    options = {"batch_size": batch_size, "timeout": timeout}
    assert call(function, **options) == [1.0, 0.0, 1.0]


def test_keyword_arguments_take_all_columns():
    assert call(right_and_more) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        (lambda completions, solution: [], "solution"),
        (lambda solution, **columns: [], "solution"),
        (lambda completions, /: [], "completions"),
    ],
)
def test_a_column_that_is_not_there(function, missing):
    with pytest.raises(UserError) as error:
        call(function)
    message = one_line(error)
    assert f"takes {missing}: expected some of prompts, completions, answer" in message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"answer": ["2"]}, "column 'answer' has 1 values: expected one a completion"),
        ({"prompts": COMPLETIONS}, "column 'prompts': the texts have that name"),
    ],
)
def test_columns_that_do_not_fit(columns, words):
    with pytest.raises(UserError, match=words):
        call_reward_function(right, PROMPTS, COMPLETIONS, columns)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"batch_size": 0}])
def test_options_out_of_range(options):
    with pytest.raises(UserError, match="= 0: expected"):
        call(right, **options)


def test_retries_below_none():
    with pytest.raises(UserError, match="retries = -1: expected 0 or more"):
        call(right, retries=-1)


# Batches.


def test_batches_are_rows_in_order():
    seen = []

    def reward(prompts, completions, source):
        seen.append((prompts, completions, source))
        return [len(seen)] * len(prompts)

    assert call(reward, batch_size=2) == [1.0, 1.0, 2.0]
    assert seen == [
        (["1+1=", "1+2="], ["2", "4"], ["a", "b"]),
        (["2+2="], ["4"], ["c"]),
    ]


def test_a_wrong_score_is_named_by_its_row_of_all():
    nan = lambda completions: [0.0 if c == "2" else np.nan for c in completions]
    with pytest.raises(UserError, match="row 1: score nan of '4'"):
        call(nan, batch_size=1)
    three = lambda completions: [1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="3 scores: expected a list of 2"):
        call(three, batch_size=2)


def test_no_rows():
    assert call_reward_function(lambda completions: [], [], []).shape == (0,)


# In time.


def hang(completions):
    time.sleep(EVER)


async def async_hang(completions):
    await asyncio.sleep(EVER)


async def async_block(completions):
    time.sleep(EVER)


@pytest.mark.fault(15)
@pytest.mark.parametrize("function", [hang, async_hang, async_block])
def test_a_function_that_hangs(function):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        call(function, timeout=WAIT, batch_size=2)
    assert WAIT <= time.monotonic() - start < EVER / 3
    message = one_line(error)
    assert f"{function.__name__}, rows 0 to 1: no answer within 0.2 s" in message
    # Whatever it goes on with, the next ones are called.
    assert call(async_right, timeout=EVER / 3) == [1.0, 0.0, 1.0]


def test_a_later_batch_has_its_own_time():
    def slow(completions):
        time.sleep(0.4)
        return [0.0] * len(completions)

    assert call(slow, timeout=1.0, batch_size=1) == [0.0] * 3


def test_a_late_coroutine_is_cancelled():
    cancelled = threading.Event()

    async def judge(completions):
        try:
            await asyncio.sleep(EVER)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(UserError, match="judge"):
        call(judge, timeout=WAIT)
    assert cancelled.wait(EVER / 3)


@pytest.mark.parametrize("timeout", [None, EVER])
def test_without_a_time_out_functions_stay_in_this_thread(timeout):
    threads = []

    def reward(completions):
        threads.append(threading.current_thread())
        return [0.0] * len(completions)

    call(reward, timeout=timeout)
    assert (threads == [threading.current_thread()]) == (timeout is None)


def raises(error):
    def fail(completions):
        raise error

    return fail


def async_raises(error):
    async def fail(completions):
        raise error

    return fail


@pytest.mark.fault(15)
@pytest.mark.parametrize("timeout", [None, EVER])
@pytest.mark.parametrize("made", [raises, async_raises])
def test_what_a_function_raises_is_the_cause_of_one_line(made, timeout):
    with pytest.raises(UserError) as error:
        call(made(KeyError("mine\nand more")), timeout=timeout, batch_size=2)
    message = one_line(error)
    assert "reward function fail, rows 0 to 1: raised KeyError: 'mine" in message
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [UserError("file:7: mend it"), KeyboardInterrupt()])
@pytest.mark.parametrize("timeout", [None, EVER])
def test_what_says_what_to_do_stays_as_it_is(error, timeout):
    """And is not tried again."""
    function = Flaky(1, raises(error))
    with pytest.raises(type(error)) as found:
        call(function, timeout=timeout, retries=3)
    assert found.value is error and function.calls == 1


def test_an_error_does_not_wait_for_the_others():
    start = time.monotonic()
    with pytest.raises(UserError, match="raised KeyError: 'mine'"):
        functions = {"hang": async_hang, "fail": raises(KeyError("mine"))}
        combine_rewards(functions, PROMPTS, COMPLETIONS, timeout=EVER)
    assert time.monotonic() - start < EVER / 3


# Again.


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures, how):
        self.calls, self.failures, self.how = 0, failures, how

    def __call__(self, completions):
        self.calls += 1
        if self.calls <= self.failures:
            self.how(completions)
        return [float(self.calls)] * len(completions)


class AsyncFlaky:
    def __init__(self, failures, how):
        self.calls, self.failures, self.how = 0, failures, how

    async def __call__(self, completions):
        self.calls += 1
        if self.calls <= self.failures:
            await self.how(completions)
        return [float(self.calls)] * len(completions)


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("kind", "how", "timeout"),
    [
        (Flaky, raises(OSError("busy")), None),
        (Flaky, raises(OSError("busy")), EVER),
        (Flaky, hang, WAIT),
        (AsyncFlaky, async_hang, WAIT),
    ],
)
def test_bounded_retries(kind, how, timeout):
    function = kind(2, how)
    assert call(function, timeout=timeout, retries=2) == [3.0] * 3
    function = kind(3, how)
    with pytest.raises(UserError) as error:
        call(function, timeout=timeout, retries=2)
    assert function.calls == 3
    said = "in 3 calls OSError: busy" if how not in (hang, async_hang) else "in 3 calls"
    assert said in one_line(error)


def test_who_has_answered_is_not_asked_again():
    steady, flaky = Flaky(0, hang), Flaky(1, raises(OSError("busy")))
    functions = {"steady": steady, "flaky": flaky}
    found = combine_rewards(functions, PROMPTS, COMPLETIONS, retries=1)
    assert (steady.calls, flaky.calls) == (1, 2)
    assert found.scores.tolist() == [1.0 + 2.0] * 3


def test_each_batch_has_its_own_retries():
    turns = iter([raises(OSError("busy")), right] * 3)

    def reward(completions, answer):
        turn = next(turns)
        return turn(completions, answer) if turn is right else turn(completions)

    assert call(reward, retries=1, batch_size=1) == [1.0, 0.0, 1.0]


def test_async_calls_share_an_event_loop():
    """Connections belong to the loop in which they were opened."""
    loops = []

    async def judge(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    call(judge, batch_size=1)
    assert len(set(loops)) == 1 and len(loops) == 3


def test_within_a_running_event_loop():
    async def notebook():
        return call(async_right)

    assert asyncio.run(notebook()) == [1.0, 0.0, 1.0]
