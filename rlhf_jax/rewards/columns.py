"""Rewards that read more than prompt and completion: the other columns of a row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rlhf_jax.errors import UserError
from rlhf_jax.rewards.calls import arguments, function_name, is_async
from rlhf_jax.rewards.functions import RewardFunction

OWN = ("prompts", "completions", "completion_ids")  # what every reward is given


class Known(Protocol):
    """What is known of a prompt: ``rlhf_jax.data.Prompt`` has all of it."""

    @property
    def prompt(self) -> str: ...

    @property
    def origin(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, Any]: ...


def with_columns(function: RewardFunction, prompts: Iterable[Known]) -> RewardFunction:
    """A reward of prompt and completion alone: r(x, y) = f(x, y, columns of x).

    No reference. Such as the right answer, which stands beside each question: what is
    sampled may be shuffled, repeated or drawn again, its prompt says which row it is.

    Args:
      function: called as ``call_reward_function`` says, with the columns that all rows
        have.
      prompts: all that it is going to be asked about, with their columns.

    Returns:
      A function of prompts, completions and completion_ids; async if ``function`` is.

    Raises:
      UserError: the function takes a column that is not there, or one in which two rows
        of the same prompt differ; names column and rows.

    >>> from rlhf_jax.data import Prompt
    >>> right = lambda completions, answer: [float(y == z) for y, z in
    ...     zip(completions, answer)]
    >>> reward = with_columns(right, [Prompt("1+1=", columns={"answer": "2"})])
    >>> reward(prompts=["1+1=", "1+1="], completions=["2", "3"])
    [1.0, 0.0]
    """
    prompts, name = list(prompts), function_name(function)
    shared = [c for c in prompts[0].columns if all(c in p.columns for p in prompts)]
    taken = arguments(function, name, dict.fromkeys((*OWN, *shared), ()))
    columns = [column for column in taken if column not in OWN]
    if not columns:
        return function
    rows = _rows_by_prompt(prompts, columns, name)

    def given(
        prompts: Sequence[str], completions: Sequence[str], **others: Any
    ) -> dict[str, Any]:
        known = [rows[prompt] for prompt in prompts]
        found = {column: [row.columns[column] for row in known] for column in columns}
        found |= {"prompts": prompts, "completions": completions} | others
        return arguments(function, name, found)

    def called(**texts: Any) -> Any:
        return function(**given(**texts))

    async def awaited(**texts: Any) -> Any:
        return await function(**given(**texts))

    reward = awaited if is_async(function) else called
    reward.__name__ = name  # for messages
    return reward


def _rows_by_prompt(
    prompts: Iterable[Known], columns: Sequence[str], name: str
) -> dict[str, Known]:
    rows: dict[str, Known] = {}
    for row in prompts:
        first = rows.setdefault(row.prompt, row)
        for column in columns:
            if first.columns[column] != row.columns[column]:
                raise UserError(
                    f"{row.origin}: same prompt as {first.origin}, another {column!r}, "
                    f"which reward function {name} takes: expected one a prompt; "
                    "remove a row or the column"
                )
    return rows
