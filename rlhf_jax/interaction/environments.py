"""Environments to begin with: pure functions of all text so far.

A call stands between two marks at the very end of the text; what does not end in a call
is answered with None, which ends the response. What is wrong with a call is said in the
answer, for the policy to read.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping

from rlhf_jax.interaction.environment import Environment

MAX_DIGITS = 100  # of a result, so that no call takes long
MAX_LENGTH = 200  # characters of a call

_OPERATIONS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_WRITTEN = {"−": "-", "×": "*", "·": "*", "÷": "/"}


class _CallError(Exception):
    """What is wrong with a call."""


def call_at_end(text: str, opening: str, closing: str) -> str | None:
    """What stands between the last opening mark and the closing mark at the end.

    No reference. None where the text does not end in a call.

    >>> call_at_end("2+2=[2+2]", "[", "]"), call_at_end("[2+2]4", "[", "]")
    ('2+2', None)
    """
    if not text.endswith(closing):
        return None
    _, found, call = text.removesuffix(closing).rpartition(opening)
    return call if found and closing not in call else None


def calculator(opening: str = "<call>", closing: str = "</call>") -> Environment:
    """Whole numbers, + − × ÷ and parentheses; what does not come out whole is an error.

    Cobbe et al. 2021, arXiv:2110.14168, § calculator annotations. Nothing is evaluated
    as Python: the call's syntax tree is walked, and may have nothing else.

    >>> answer = calculator()
    >>> answer("12 × (3 + 4)? <call>12 × (3 + 4)</call>"), answer("It is 84.")
    ('84', None)
    >>> answer("<call>7 / 2</call>"), answer("<call>2 ** 9</call>")
    ('error: 7 / 2 is no whole number', 'error: only whole numbers, + - * / and ( )')
    """

    def answer(text: str) -> str | None:
        call = call_at_end(text, opening, closing)
        if call is None:
            return None
        try:
            return str(_value(_parse(call)))
        except _CallError as error:
            return f"error: {error}"

    return answer


def _parse(call: str) -> ast.expr:
    for written, plain in _WRITTEN.items():
        call = call.replace(written, plain)
    if len(call) > MAX_LENGTH:
        raise _CallError(f"more than {MAX_LENGTH} characters")
    # 007 and 1_000 are not read as Python reads them.
    call = re.sub(r"\b0+(?=[0-9])", "", call.strip())
    try:
        return ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _CallError("not an expression") from None


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return _short(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _quotient(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _short(_OPERATIONS[type(op)](_value(left), _value(right)))
    raise _CallError("only whole numbers, + - * / and ( )")


def _quotient(a: int, b: int) -> int:
    if b == 0:
        raise _CallError("division by zero")
    if a % b:
        raise _CallError(f"{a} / {b} is no whole number")
    return a // b


def _short(value: int) -> int:
    if abs(value) >= 10**MAX_DIGITS:
        raise _CallError(f"more than {MAX_DIGITS} digits")
    return value


def retriever(
    documents: Mapping[str, str], opening: str = "<search>", closing: str = "</search>"
) -> Environment:
    """The document with most words in common with the call, of the first such one.

    No reference. Words are compared without case and punctuation; a document's title
    counts as part of it.

    >>> cities = {"Paris": "The capital of France.", "Rome": "That of Italy."}
    >>> answer = retriever(cities)
    >>> answer("<search>capital of france</search>")
    'Paris: The capital of France.'
    >>> answer("<search>weather</search>")
    'nothing found'
    """
    shown = [f"{title}: {text}" for title, text in documents.items()]
    words = [_words(text) for text in shown]

    def answer(text: str) -> str | None:
        call = call_at_end(text, opening, closing)
        if call is None:
            return None
        common = [len(_words(call) & known) for known in words]
        most = max(common, default=0)
        return shown[common.index(most)] if most else "nothing found"

    return answer


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
