"""When an environment is asked, how often, and what room that takes."""

import dataclasses

from rlhf_jax.errors import UserError
from rlhf_jax.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class InteractionConfig:
    """When an environment is asked, and how often; the policy's budget is sampling's.

    Raises:
      UserError: a value that no interaction can have; the message names the option.

    >>> InteractionConfig(turn_ids=(93,)).turns
    4
    """

    turn_ids: tuple[int, ...]
    """Tokens that end a turn of the policy, not its response, and belong to it."""
    turns: int = 4
    """Most turns of the policy."""
    env_tokens: int = 32
    """Most tokens of the environment a turn; of a longer text the first are taken."""
    timeout: float | None = None
    """Seconds for what the environment says in a turn, to all rows; none waits."""

    def __post_init__(self):
        rules = [
            ("turn_ids", len(self.turn_ids) > 0, "at least one token id"),
            ("turns", self.turns >= 1, "1 or more"),
            ("env_tokens", self.env_tokens >= 1, "1 or more"),
            ("timeout", self.timeout is None or self.timeout > 0, "more than 0 s"),
        ]
        for name, holds, expected in rules:
            if not holds:
                value = dataclasses.asdict(self)[name]
                raise UserError(f"{name} = {value}: expected {expected}")


def check(sampling: SamplingConfig, config: InteractionConfig) -> None:
    if both := set(sampling.stop_ids) & set(config.turn_ids):
        raise UserError(
            f"turn_ids = {config.turn_ids}: {min(both)} is one of stop_ids = "
            f"{sampling.stop_ids}, which end the response; expected others"
        )
    if sampling.stop_after:
        raise UserError(
            f"stop_after = {sampling.stop_after}: expected 0 where an environment "
            "answers, for it would count from each turn on"
        )


def context_width(
    prompt_length: int, turn: int, sampling: SamplingConfig, config: InteractionConfig
) -> int:
    """Columns that the policy reads before its turn, the first being 1. No reference.

    P before the first; later P + R − 1 + (turn − 1) · env_tokens: all that may have
    been said when the policy has a token left. The network's context must be R longer.

    >>> sampling, config = SamplingConfig(8), InteractionConfig((93,), env_tokens=4)
    >>> [context_width(10, turn, sampling, config) for turn in (1, 2, 3)]
    [10, 21, 25]
    """
    if turn == 1:
        return prompt_length
    said = (turn - 1) * config.env_tokens
    return prompt_length + sampling.max_new_tokens - 1 + said
