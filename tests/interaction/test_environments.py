"""The calculator and the retriever, and environments that do not behave."""

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.errors import UserError
from rlhf_jax.interaction import InteractionConfig, ask, calculator, retriever
from rlhf_jax.interaction.config import check
from rlhf_jax.sampling import SamplingConfig


def calculated(call: str) -> str | None:
    return calculator("[", "]")(f"so [{call}]")


@pytest.mark.parametrize(
    "call, result",
    [
        ("1234*5678", "7006652"),
        (" 2 + 3 * 4 ", "14"),
        ("(2+3)*-4", "-20"),
        ("7 − 9", "-2"),
        ("12 ÷ 4 × 3", "9"),
        ("007+010", "17"),
        ("100*000", "0"),
    ],
)
def test_whole_numbers(call, result):
    assert calculated(call) == result


@pytest.mark.parametrize(
    "call, error",
    [
        ("1/0", "division by zero"),
        ("7/2", "7 / 2 is no whole number"),
        ("1+", "not an expression"),
        ("", "not an expression"),
        ("2 3", "not an expression"),
        ("2**9", "only whole numbers"),
        ("1.5+1", "only whole numbers"),
        ("True+1", "only whole numbers"),
        ("'a'*9", "only whole numbers"),
        ("x", "only whole numbers"),
        ("__import__('os').getpid()", "only whole numbers"),
        ("1 if 1 else 2", "only whole numbers"),
        ("1)+(2", "not an expression"),
        ("\0", "not an expression"),
        ("9" * 101, "more than 100 digits"),
        ("*".join(["9" * 60] * 3), "more than 100 digits"),
        ("1+" * 100 + "1", "more than 200 characters"),
        ("(" * 150 + "1", "not an expression"),
    ],
)
def test_errors_are_text(call, error):
    found = calculated(call)
    assert found is not None and found.startswith("error: ") and error in found


@given(st.text(max_size=60))
def test_any_call_is_answered(call):
    """Nothing is raised; a call that has marks of its own need not be one."""
    assert calculated(call) is not None or "]" in call


def test_hostile_calls_cost_nothing():
    tracemalloc.start()
    began = time.perf_counter()
    for call in ("9**9**9**9", "9" * 10**6, "(" * 10**5, "-" * 190 + "1"):
        assert calculated(call) is not None
    assert time.perf_counter() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("text", ["", "2+2=", "[2+2]4", "2+2]", "[1] 2]"])
def test_what_does_not_end_in_a_call_is_over(text):
    assert calculator("[", "]")(text) is None


def test_the_document_with_most_words_in_common():
    answer = retriever(
        {
            "Marble": "A stone that sculptors like.",
            "Granite": "A stone of quartz and feldspar, harder than marble.",
            "Basalt": "A stone of lava.",
        }
    )
    search = lambda call: answer(f"So <search>{call}</search>") or ""
    assert search("which stone has QUARTZ?").startswith("Granite: ")
    assert search("stone").startswith("Marble: ")  # the first of equals
    assert search("sandstone") == "nothing found" == search("")
    assert answer("which stone?") is None
    assert retriever({})("<search>stone</search>") == "nothing found"


# Environments that do not behave: one line that says which, where, and what.


def broken(text):
    raise KeyError("France")


def late(text):
    time.sleep(1 if "b" in text else 0)


@pytest.mark.parametrize(
    "environment, timeout, parts",
    [
        (broken, None, ["environment broken, row 3", "'a'", "KeyError: 'France'"]),
        (lambda text: 4, None, ["row 3", "returned 4", "text, or None"]),
        (lambda text: b"4", 30.0, ["row 3", "returned b'4'"]),
        (late, 0.1, ["environment late, rows 3 to 5", "within 0.1 s"]),
    ],
)
def test_what_an_environment_must_not_do(environment, timeout, parts):
    with pytest.raises(UserError) as error:
        ask(environment, {3: "a", 5: "b"}, timeout=timeout)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_nobody_is_asked():
    assert ask(broken, {}, timeout=None) == {}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"turn_ids": ()}, r"turn_ids = \(\): expected at least one"),
        ({"turns": 0}, "turns = 0: expected 1"),
        ({"env_tokens": 0}, "env_tokens = 0: expected 1"),
        ({"timeout": 0.0}, "timeout = 0.0: expected more than 0 s"),
    ],
)
def test_what_no_interaction_can_have(options, message):
    with pytest.raises(UserError, match=message):
        InteractionConfig(**({"turn_ids": (5,)} | options))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stop_ids": (2, 5)}, r"turn_ids = \(5,\): 5 is one of stop_ids"),
        ({"stop_after": 4}, "stop_after = 4: expected 0"),
    ],
)
def test_what_sampling_must_not_have(options, message):
    with pytest.raises(UserError, match=message):
        check(SamplingConfig(8, **options), InteractionConfig((5,)))
