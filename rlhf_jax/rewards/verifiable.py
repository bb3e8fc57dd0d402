"""Rewards for answers that can be checked: the final number, equal mathematics.

The column ``answer`` has the reference: the answer alone, or a solution that ends in
it, such as those of GSM8K ("… #### 72").
"""

import re
import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rlhf_jax.errors import UserError

# No digit group is left half read: 1,234.5 is one number, 1,23 and 1.2.3 are none.
_NUMBER = (
    r"(?P<sign>(?<![\w)\]}])-)?[$€£]?(?<![0-9][.,])(?<![\w.])"
    r"(?P<digits>(?>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?+"
    r"|\.[0-9]+))(?![.,]?[0-9]|[eE][-+]?[0-9])"
)
_ANYWHERE = re.compile(_NUMBER)
# After "####": nothing before it but marks, no expression that goes on.
_AT_ONCE = re.compile(
    r"[\s:=*$€£(\[{\\]*"
    + _NUMBER
    + r"(?!\s*[-+*/^×·]\s*[0-9(\\{]|\s*\\(?!text|mathrm)[a-z]|[A-Za-z_])"
)
_MARKS = (re.compile(r"####"), re.compile(r"\\boxed\s*(?={)"))
_SENTENCE = re.compile(r"\banswer\s*(?:is\b|:|=)", re.IGNORECASE)
_LATEX_SPACES = {"−": "-", "{,}": ",", r"\$": "$", r"\,": "", r"\!": "", r"\ ": " "}


def final_number(text: str) -> Decimal | None:
    r"""The number that a solution ends in, exactly; None if there is none.

    What follows the last ``####``, else is in the last ``\boxed{…}``, must be a number;
    else what the last "answer is" or "answer:" names, else the last number of all.
    Thousands may have commas; a currency, a percent sign and words after it do not
    matter. "####" is GSM8K's: Cobbe et al. 2021, arXiv:2110.14168.

    >>> texts = "1 + 2 = 3\n#### 1,234", r"so \boxed{42}.", "The answer is $-0.50."
    >>> [str(final_number(text)) for text in texts]
    ['1234', '42', '-0.50']
    """
    for written, plain in _LATEX_SPACES.items():
        text = text.replace(written, plain)
    for mark in _MARKS:
        if ends := [match.end() for match in mark.finditer(text)]:
            return _decimal(_AT_ONCE.match(text, ends[-1]))
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    named = _AT_ONCE.match(text, ends[-1]) if ends else None
    return _decimal(named or next(reversed([*_ANYWHERE.finditer(text)]), None))


def _decimal(match: re.Match[str] | None) -> Decimal | None:
    if match is None:
        return None
    return Decimal((match["sign"] or "") + match["digits"].replace(",", ""))


def final_number_reward(
    completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 where the final number is the reference's, else 0. No reference.

    None where the reference has none, see ``final_number``.

    >>> final_number_reward(["So it is 7.", "8"], ["3 + 4 = 7\\n#### 7", "7.0"])
    [1.0, 0.0]
    """
    del columns
    numbers = [
        (final_number(str(a)), final_number(c))
        for c, a in zip(completions, answer, strict=True)
    ]
    return [None if a is None else float(a == c) for a, c in numbers]


def math_reward(
    completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    r"""1 where the answer equals the reference as mathematics, else 0. No reference.

    Fractions, roots, sets, intervals, units and so on as Hugging Face's math-verify
    reads and compares them, which `pip install 'rlhf_jax[verify]'` brings. None where
    it cannot read the reference.

    In the main thread it gives up a row after 5 s of reading and 5 s of comparing,
    which then counts 0. It needs a signal for that, and there are none in other
    threads: there a row such as 9^{9^{9^9}} takes as long as it takes, and a time-out
    of ``call_reward_function``, which calls in a thread, is for all rows.

    Raises:
      UserError: math-verify is not installed.
    """
    del columns
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            "math_reward: math-verify is not installed: pip install 'rlhf_jax[verify]'"
        ) from error
    main = threading.current_thread() is threading.main_thread()
    seconds: Any = 5 if main else None

    def score(completion: str, reference: str) -> float | None:
        gold = math_verify.parse(_as_latex(reference), parsing_timeout=seconds)
        if not gold:
            return None
        found = math_verify.parse(_solution_end(completion), parsing_timeout=seconds)
        return float(math_verify.verify(gold, found, timeout_seconds=seconds))

    rows = zip(completions, answer, strict=True)
    return [score(completion, str(reference)) for completion, reference in rows]


def _solution_end(text: str) -> str:
    return text.rpartition("####")[2]


def _as_latex(reference: str) -> str:
    """Marked as mathematics, unless it says itself where that is."""
    reference = _solution_end(reference).strip()
    if any(mark in reference for mark in ("$", r"\(", r"\[", r"\boxed")):
        return reference
    return rf"\boxed{{{reference}}}" if reference else ""
