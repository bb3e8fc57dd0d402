"""What answers a policy, and how it is asked."""

from collections.abc import Callable

from rlhf_jax.errors import UserError
from rlhf_jax.rewards.calls import call_all, function_name

Environment = Callable[[str], str | None]
"""All text so far, prompt and response → what is appended; None: the response is over.

A pure function: the same text gets the same answer, whatever else is asked.
"""


def ask(
    environment: Environment, texts: dict[int, str], *, timeout: float | None
) -> dict[int, str | None]:
    """{row: what the environment says to its text}, checked. No reference.

    Raises:
      UserError: it raises, is late, or returns neither text nor None; names the row.

    >>> ask(lambda text: "4" if text.endswith("=") else None, {7: "2+2="}, timeout=None)
    {7: '4'}
    """
    name = function_name(environment)

    def answer(row: int, text: str) -> str | None:
        where = f"environment {name}, row {row}, after {text[-60:]!r}"
        try:
            said = environment(text)
        except Exception as error:
            raise UserError(
                f"{where}: raised {type(error).__name__}: {error}; an environment "
                "answers every text: say what is wrong in the text that it returns"
            ) from error
        if said is None or isinstance(said, str):
            return said
        raise UserError(f"{where}: returned {said!r}: expected text, or None to end")

    answer_all = lambda: {row: answer(row, text) for row, text in texts.items()}
    shown = f"rows {min(texts, default=0)} to {max(texts, default=0)}"
    calls = {name: answer_all}
    return call_all(calls, timeout=timeout, rows=shown, what="environment")[name]
