"""Critique, then revision: the supervised stage of constitutional AI."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlhf_jax.feedback.constitution import Constitution

Reply = Callable[[Sequence[str], int], list[str]]
"""(N questions, seed) -> N replies."""


class Revision(NamedTuple):
    """One principle's work on a response: what was asked, and what was said."""

    principle: str
    critique_question: str
    critique: str
    revision_question: str
    response: str


def critique_and_revise(
    reply: Reply,
    constitution: Constitution,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    revisions: int,
    rng: random.Random,
) -> list[list[Revision]]:
    """A model revises what it said, under principles drawn at random.

    Bai et al. 2022, arXiv:2212.08073, section 3.1: each revision draws a principle for
    each response, asks for a critique, and then for a revision that answers it. The
    next revision begins with the last one's response.

    Args:
      reply: the model.
      constitution: principles, and how the model is asked.
      prompts: of N responses.
      responses: the first ones.
      revisions: how many, one after the other; 1 or more.
      rng: of the principles and of the seeds of replies; moved on.

    Returns:
      N transcripts, each a list of ``revisions`` steps; the last step's response is the
      one to learn from. What the model says is kept as it is, an empty text included.

    Raises:
      ValueError: revisions is less than 1.

    >>> from rlhf_jax.feedback.constitution import Principle, Templates
    >>> short = Principle("short", "What is long?", "Shorten it.", "Which is short?")
    >>> reply = lambda questions, seed: [q.split(" ")[0] for q in questions]
    >>> asking = Templates("{response} {request}", "{response} {critique} {request}")
    >>> [[step]] = critique_and_revise(
    ...     reply, Constitution((short,), asking), ["2 + 2 ="], ["4 or so"],
    ...     revisions=1, rng=random.Random(0))
    >>> step.critique_question, step.response
    ('4 or so What is long?', '4')
    """
    if revisions < 1:
        raise ValueError(f"revisions is {revisions}; expected at least 1")
    transcripts: list[list[Revision]] = [[] for _ in responses]
    current = list(responses)
    for _ in range(revisions):
        drawn = [rng.choice(constitution.principles) for _ in current]
        about = list(zip(drawn, prompts, current, strict=True))
        questions = [constitution.critique(*each) for each in about]
        critiques = reply(questions, rng.getrandbits(31))
        requests = [
            constitution.revision(*each, critique)
            for each, critique in zip(about, critiques, strict=True)
        ]
        current = reply(requests, rng.getrandbits(31))
        steps = zip(drawn, questions, critiques, requests, current, strict=True)
        for transcript, (principle, *said) in zip(transcripts, steps, strict=True):
            transcript.append(Revision(principle.name, *said))
    return transcripts
