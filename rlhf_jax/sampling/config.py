"""How responses are drawn."""

import dataclasses

from rlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn; hashable, so it can be static under ``jax.jit``.

    Raises:
      UserError: a value that no sampling can have; the message names the option.

    >>> SamplingConfig(max_new_tokens=24, temperature=0.7, stop_ids=(13,)).stop_after
    0
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None  # keep the k most probable tokens
    top_p: float | None = None  # keep the most probable that together reach p
    min_p: float | None = None  # keep those at least p times the most probable
    stop_ids: tuple[int, ...] = ()  # end a response, and belong to it
    stop_after: int = 0  # … from this index of the response on
    pad_id: int = 0  # stands after the end; may be one of stop_ids
    completions: int = 1  # responses a prompt; they share its prefill
    slots: int | None = None  # rows decoded at a time; None: all of the batch
    read_ahead: int = 1  # prompts that are read together, before their slots are free
    stages: int = 1  # loops that are compiled: from one to the next a batch's cache
    # grows, and a queue's slots, once it is empty, are halved: less to read
    prefill_chunk: int | None = None  # tokens of a prompt read at a time; None: all
    keep_sets: bool = False  # hand on which tokens truncation left, for the loss

    def __post_init__(self):
        rules = [
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "more than 0 (greedy is top_k=1)"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1], or None"),
            ("min_p", self.min_p is None or 0 < self.min_p <= 1, "in (0, 1], or None"),
            ("stop_ids", all(i >= 0 for i in self.stop_ids), "token ids, from 0"),
            ("stop_after", self.stop_after >= 0, "at least 0"),
            ("pad_id", self.pad_id >= 0, "a token id, from 0"),
            ("completions", self.completions >= 1, "at least 1"),
            (
                "slots",
                self.slots is None or self.slots >= self.completions,
                f"completions = {self.completions} or more",
            ),
            ("read_ahead", self.read_ahead >= 1, "at least 1"),
            ("stages", 1 <= self.stages <= self.max_new_tokens, "1 … max_new_tokens"),
            (
                "prefill_chunk",
                self.prefill_chunk is None or self.prefill_chunk >= 1,
                "at least 1, or None",
            ),
            (
                "keep_sets",
                not self.keep_sets or self.truncates,
                "False: without top_k, top_p or min_p every token is kept",
            ),
        ]
        for name, holds, remedy in rules:
            if not holds:
                value = dataclasses.asdict(self)[name]
                raise UserError(f"{name}={value}: set it to {remedy}")

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn."""
        return (self.top_k, self.top_p, self.min_p) != (None, None, None)


def greedy(config: SamplingConfig) -> SamplingConfig:
    """The config of one response a prompt, always the most probable token.

    No reference.

    >>> greedy(SamplingConfig(max_new_tokens=24, completions=4)).completions
    1
    """
    return dataclasses.replace(
        config,
        temperature=1.0,
        top_k=1,
        top_p=None,
        min_p=None,
        completions=1,
        slots=None,
        keep_sets=False,
    )
