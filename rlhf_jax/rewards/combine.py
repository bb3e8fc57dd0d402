"""Several reward functions as one reward."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.rewards.functions import Columns, RewardFunction, score_table


class CombinedRewards(NamedTuple):
    """A weighted sum, and what it was made of."""

    scores: np.ndarray  # [B] float32
    parts: dict[str, np.ndarray]  # [B] float32, without weight; NaN: does not apply

    def metrics(self) -> dict[str, float]:
        """Mean and deviation of each part over the rows to which it applies."""
        found: dict[str, float] = {}
        for name, scores in self.parts.items():
            applies = scores[~np.isnan(scores)]
            if applies.size:
                found[f"rewards/{name}/mean"] = float(applies.mean())
                found[f"rewards/{name}/std"] = float(applies.std())
        return found


def combine_rewards(
    functions: Mapping[str, RewardFunction],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Columns | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    timeout: float | None = None,
    retries: int = 0,
    batch_size: int | None = None,
) -> CombinedRewards:
    """Weighted sum of reward functions: r(x, y) = Σᵢ wᵢ rᵢ(x, y). No reference.

    As TRL's, but where every function returns None: there the sample is left out, here
    it is refused, because each row of a batch needs a score.

    Args:
      functions: {name: function}, each as ``call_reward_function`` takes them; async
        ones run at the same time, with a time-out all of them.
      prompts: B texts.
      completions: B texts.
      columns: {name: B values}.
      weights: {name: wᵢ}; None: 1 each.
      timeout: seconds for each batch.
      retries: calls more, at most, of those that are late or raise an exception.
      batch_size: rows a call; None: all at once.

    Returns:
      The sum, without those that returned None, and the parts by their names.

    Raises:
      UserError: as ``call_reward_function``; other names among the weights; a row to
        which no function applies.

    >>> functions = {
    ...     "short": lambda completions: [-len(c) for c in completions],
    ...     "early": lambda completions: [1 if c < "b" else None for c in completions],
    ... }
    >>> found = combine_rewards(
    ...     functions, ["", ""], ["a", "cd"], weights={"short": 0.5, "early": 2.0})
    >>> found.scores.tolist(), found.metrics()["rewards/early/mean"]
    ([1.5, -1.0], 1.0)
    """
    weights = dict.fromkeys(functions, 1.0) if weights is None else weights
    if not functions or set(weights) != set(functions):
        raise UserError(
            f"reward weights of {', '.join(weights) or 'nothing'}: expected one for "
            f"each of {', '.join(functions) or 'at least one function'}"
        )
    if wrong := [name for name, w in weights.items() if not math.isfinite(w)]:
        raise UserError(
            f"reward weight of {wrong[0]} = {weights[wrong[0]]}: expected a finite "
            "number"
        )
    parts = score_table(
        functions,
        prompts,
        completions,
        columns,
        timeout=timeout,
        retries=retries,
        batch_size=batch_size,
    )
    table = np.stack([parts[name] for name in functions])  # [F, B]
    if (nothing := np.isnan(table).all(axis=0)).any():
        row = int(nothing.argmax())
        raise UserError(
            f"row {row}, {completions[row][:60]!r}: every reward function "
            f"({', '.join(functions)}) returned None; one of them must give a number"
        )
    weight = np.array([weights[name] for name in functions])
    scores = np.nansum(weight[:, None] * table, axis=0)
    return CombinedRewards(scores.astype(np.float32), parts)
