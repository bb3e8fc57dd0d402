"""Answers that can be checked, on GSM8K's references among others."""

import importlib
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest

from rlhf_jax.data import read_rows
from rlhf_jax.errors import UserError
from rlhf_jax.rewards import (
    call_reward_function,
    combine_rewards,
    final_number,
    final_number_reward,
    math_reward,
)

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl.gz"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 42", "42"),
        ("1 + 1 = 2\n#### 1,234", "1234"),
        ("#### 4\n#### 5", "5"),
        ("#### -5 degrees", "-5"),
        ("#### −5", "-5"),
        ("####$1,234,567.89", "1234567.89"),
        ("#### 42 or 43", "42"),
        (r"so \boxed{42}, not 43", "42"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{\$5}", "5"),
        (r"\boxed{42\%}", "42"),
        (r"\boxed{7\text{ cm}}", "7"),
        (r"\boxed{1} and then \boxed{-2.50}", "-2.5"),
        ("The answer is 42.", "42"),
        ("The answer is **42** because 6 * 7 = 42, and 3 is not.", "42"),
        ("Answer: $-0.50", "-0.5"),
        (r"The final answer is \(42\). It took 3 steps.", "42"),
        ("The answer is the sum, 5 + 6 = 11.", "11"),
        ("The answer is 5 + 6 = 11.", "11"),
        ("1,234", "1234"),
        ("He has .5 left", "0.5"),
        ("10-5", "5"),
        ("x = -5", "-5"),
        ("in 2024.", "2024"),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "#### unknown, 42",
        "42 ####",
        "#### 3/4",
        "#### 5 + 6",
        "#### 5^2",
        "#### 1,23",
        "1,2345",
        r"\boxed{\frac{1}{2}} or 1",
        r"\boxed{2x}",
        r"\boxed{2\sqrt{3}}",
        r"\boxed{}",
        "1.2.3",
        "1,2,3",
        "1e5",
        "x2",
    ],
)
def test_no_final_number(text):
    assert final_number(text) is None


def test_final_numbers_are_exact():
    # 0.1 + 0.2 and 2⁵³ + 1 are where floats end.
    completions = ["0.30", "9007199254740993", "9007199254740992"]
    answer = ["0.3", 9007199254740993, "#### 9,007,199,254,740,993"]
    assert final_number_reward(completions, answer) == [1.0, 1.0, 0.0]


def test_a_reference_without_a_number():
    assert final_number_reward(["1", "1"], ["one", "1"], other=[2, 3]) == [None, 1.0]
    with pytest.raises(UserError, match="final_number_reward, row 0: score None"):
        call_reward_function(final_number_reward, [""], ["1"], {"answer": ["one"]})


def test_a_long_response_is_read_at_once():
    start = time.monotonic()
    for text in ("1" * 100_000, "1,111" * 20_000, "-$(" * 50_000, "answer is " * 9_999):
        final_number(text)
    assert time.monotonic() - start < 5


def test_all_references_of_gsm8k():
    if not GSM8K.is_file():
        pytest.skip(f"real data is not there: {GSM8K}")
    answers = [row.values["answer"] for row in read_rows(GSM8K)]
    ends = [answer.rpartition("#### ")[2] for answer in answers]
    # Every one is digits, some with commas or a sign: what Python's int reads of them.
    expected = [int(end.replace(",", "")) for end in ends]
    assert len(answers) == 7473 and sum("," in end for end in ends) > 50
    assert [final_number(answer) for answer in answers] == expected
    # The answer alone, in a sentence and in a box is the same number.
    for form in ("{}", "The answer is ${}.", r"so \boxed{{{}}}"):
        completions = [form.format(end) for end in ends]
        assert final_number_reward(completions, answers) == [1.0] * len(answers)
    other = [str(n + 1) for n in expected]
    assert final_number_reward(other, answers) == [0.0] * len(answers)


# Mathematics.


@pytest.fixture
def math_verify():
    return pytest.importorskip("math_verify", reason="the extra 'verify'")


SAME = [
    ("3 + 4 = 7\n#### 72", "#### 72"),
    ("#### 1,234", "The answer is 1234."),
    (r"\frac{1}{3}", r"so $\boxed{\frac{2}{6}}$"),
    ("0.5", r"The answer is $\frac12$"),
    ("x^2+1", r"$1 + x^2$"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"$\boxed{(3,\frac{\pi}{2})}$"),
    (r"$\sqrt{8}$", r"$2\sqrt{2}$"),
    (r"\{1,2\}", r"$\{2,1\}$"),
    (72, "48 and 24 are\n#### 72"),
    ("#### 72", "The answer is 36 for one.\n#### 72"),
]
OTHER = [
    ("72", "#### 73"),
    ("#### 72", "72 it was\n#### 73"),
    (r"\frac{1}{3}", r"$\frac{1}{4}$"),
    ("x^2+1", "$x^2-1$"),
    ("72", "I do not know"),
    ("72", ""),
]


def test_equal_mathematics(math_verify):
    for rows, expected in ((SAME, 1.0), (OTHER, 0.0)):
        answers, completions = zip(*rows, strict=True)
        assert math_reward(completions, answers) == [expected] * len(rows)


def test_a_reference_that_cannot_be_read(math_verify):
    assert math_reward(["1", "1"], ["", "1"], other=[2, 3]) == [None, 1.0]


def test_mathematics_in_threads(math_verify):
    """Where no signal can be set: with a time-out, and beside other rewards."""
    answers, completions = zip(*(SAME + OTHER), strict=True)
    expected = [1.0] * len(SAME) + [0.0] * len(OTHER)
    columns = {"answer": answers}
    prompts = [""] * len(answers)
    options = {"timeout": 60.0, "batch_size": 4}
    found = call_reward_function(math_reward, prompts, completions, columns, **options)
    assert found.tolist() == expected
    parts = combine_rewards(
        {"math": math_reward, "again": math_reward},
        prompts,
        completions,
        columns,
        **options,
    ).parts
    assert parts["math"].tolist() == parts["again"].tolist() == expected


def test_mathematics_without_end_is_given_up(math_verify, monkeypatch):
    """The library's own time-out, of one second, in the main thread."""
    seconds = []
    verify = math_verify.verify

    def hurry(*args, timeout_seconds):
        seconds.append(timeout_seconds)
        return verify(*args, timeout_seconds=1)

    monkeypatch.setattr(math_verify, "verify", hurry)
    tower, start = r"$9^{9^{9^{9}}}$", time.monotonic()
    assert math_reward([tower, "3"], ["3", "3"]) == [0.0, 1.0]
    assert time.monotonic() - start < 20 and seconds == [5, 5]


def test_without_the_library(monkeypatch):
    """The module does not need it, one function does."""
    monkeypatch.setitem(sys.modules, "math_verify", None)
    importlib.reload(importlib.import_module("rlhf_jax.rewards.verifiable"))
    with pytest.raises(UserError, match=r"pip install 'rlhf_jax\[verify\]'"):
        math_reward(["1"], ["1"])
