"""A rubric: criteria on a scale, which a model rates; a reward like any other.

A TOML file that its owner edits::

    [[criteria]]
    name = "truth"
    question = "Is everything in the answer true?"
    weight = 2

    [scale]  # if the model wants to be asked in another way
    template = "{prompt} {response} {request} Rate from 1 to 5:"
    answers = [" 1", " 2", " 3", " 4", " 5"]  # from the worst to the best
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.judge import Ask
from rlhf_jax.feedback.toml import check_template, make_entry, read_list, read_toml
from rlhf_jax.rewards import RewardFunction


@dataclass(frozen=True)
class Criterion:
    """What an answer is rated for."""

    name: str
    question: str
    weight: float = 1.0

    def __post_init__(self):
        if self.weight <= 0:
            raise UserError(f"weight = {self.weight}: expected more than 0")


@dataclass(frozen=True)
class Scale:
    """How a model is asked, and what it may answer, from the worst to the best."""

    template: str = (
        "{prompt}\n\nAn answer to this:\n\n{response}\n\n{request} Rate the answer "
        "from 1, the worst, to 5, the best. Reply with the number, and nothing else."
    )
    answers: tuple[str, ...] = (" 1", " 2", " 3", " 4", " 5")

    def __post_init__(self):
        check_template("template", self.template, ("prompt", "response", "request"))
        if len(self.answers) < 2:
            raise UserError(f"answers = {[*self.answers]}: expected two or more")


@dataclass(frozen=True)
class Rubric:
    """Criteria, and how a model is asked about them."""

    criteria: tuple[Criterion, ...]
    scale: Scale = Scale()


def read_rubric(path: str | Path) -> Rubric:
    """Reads criteria and scale from a TOML file. No reference.

    Args:
      path: a file as at the top of this module. What its scale leaves out is that of
        ``Scale``.

    Returns:
      The rubric.

    Raises:
      UserError: no such file, not TOML, or something in it is missing, unknown, empty
        or of another type, or the template has other places than it should.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rubric.toml"
    >>> text = '[[criteria]]\\nname = "truth"\\nquestion = "Is it true?"\\nweight = 2'
    >>> _ = path.write_text(text)
    >>> read_rubric(path).criteria
    (Criterion(name='truth', question='Is it true?', weight=2.0),)
    """
    path = Path(path)
    found = read_toml(path, ("criteria", "scale"))
    criteria = read_list(path, found, "criteria", Criterion)
    scale = make_entry(Scale, found.get("scale", {}), f"{path}: [scale]")
    return Rubric(criteria, scale)


def rubric_reward(ask: Ask, rubric: Rubric) -> RewardFunction:
    """r(x, y) = Σ_c w_c Σ_s s·P(s | x, y, c) / Σ_c w_c, with s from 0 to 1.

    Lee et al. 2023, arXiv:2309.00267, section 2.2.2 (direct RLAIF): a rating is its
    expectation over the scale, which orders answers that get the same number.

    Args:
      ask: the model, see ``make_ask``.
      rubric: what it is asked.

    Returns:
      A reward function: (prompts, completions) -> B numbers in [0, 1].

    >>> ask = lambda questions, answers: np.log([[0.25, 0.75] for _ in questions])
    >>> scale = Scale("{response} {request}", (" bad", " good"))
    >>> reward = rubric_reward(ask, Rubric((Criterion("true", "Is it?"),), scale))
    >>> reward(prompts=["2 + 2 ="], completions=["4"])
    [0.75]
    """
    steps = np.linspace(0, 1, len(rubric.scale.answers))
    weights = np.array([criterion.weight for criterion in rubric.criteria])

    def reward(
        *, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        del columns
        questions = [
            rubric.scale.template.format(
                prompt=prompt, response=completion, request=criterion.question
            )
            for prompt, completion in zip(prompts, completions, strict=True)
            for criterion in rubric.criteria
        ]
        said = np.exp(np.asarray(ask(questions, rubric.scale.answers), np.float64))
        ratings = (said @ steps).reshape(len(completions), len(weights))
        return [math.fsum(row) for row in ratings * weights / weights.sum()]

    return reward
