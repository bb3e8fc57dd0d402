"""Principles in words, and the questions that they put to a model.

A constitution is a TOML file that its owner edits::

    [[principles]]
    name = "courtesy"
    critique = "Say where the answer is discourteous."
    revision = "Write the answer again, with courtesy."
    preference = "Which answer is more courteous?"

    [templates]  # if the model wants to be asked in another way
    critique = "Question: {prompt} Answer: {response} {request}"
    revision = "… {critique} {request}"
    preference = "{request} A: {first} B: {second} Better:"
    answers = [" A", " B"]
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.toml import check_template, make_entry, read_list, read_toml

PLACES = {
    "critique": ("prompt", "response", "request"),
    "revision": ("prompt", "response", "critique", "request"),
    "preference": ("prompt", "first", "second", "request"),
}


@dataclass(frozen=True)
class Principle:
    """One respect in which answers can be good."""

    name: str
    critique: str  # the request to criticise an answer
    revision: str  # the request to revise it
    preference: str  # the question which of two is better


@dataclass(frozen=True)
class Templates:
    """How a model is asked: texts with {prompt}, {response}, {request} and so on."""

    critique: str = "{prompt}\n\nAn answer to this:\n\n{response}\n\n{request}"
    revision: str = (
        "{prompt}\n\nAn answer to this:\n\n{response}\n\nA critique of the answer:\n\n"
        "{critique}\n\n{request} Write the new answer, and nothing else."
    )
    preference: str = (
        "{prompt}\n\nTwo answers to this:\n\n(A) {first}\n\n(B) {second}\n\n{request} "
        "Reply with the letter A or B, and nothing else."
    )
    answers: tuple[str, ...] = (" A", " B")  # the first is better, or the second

    def __post_init__(self):
        for name, places in PLACES.items():
            check_template(name, vars(self)[name], places)
        if len(self.answers) != 2:
            raise UserError(f"answers = {[*self.answers]}: expected two")


@dataclass(frozen=True)
class Constitution:
    """Principles, and how a model is asked about them."""

    principles: tuple[Principle, ...]
    templates: Templates = Templates()

    def critique(self, principle: Principle, prompt: str, response: str) -> str:
        """The question what is wrong with a response."""
        return self.templates.critique.format(
            prompt=prompt, response=response, request=principle.critique
        )

    def revision(
        self, principle: Principle, prompt: str, response: str, critique: str
    ) -> str:
        """The question for a better response."""
        return self.templates.revision.format(
            prompt=prompt,
            response=response,
            critique=critique,
            request=principle.revision,
        )

    def preference(
        self, principle: Principle, prompt: str, first: str, second: str
    ) -> str:
        """The question which of two responses is better."""
        return self.templates.preference.format(
            prompt=prompt, first=first, second=second, request=principle.preference
        )


def read_constitution(path: str | Path) -> Constitution:
    """Reads principles and templates from a TOML file.

    Bai et al. 2022, arXiv:2212.08073: each principle has a critique request, a revision
    request and a preference question.

    Args:
      path: a file as at the top of this module. Templates that it does not have are
        those of ``Templates``.

    Returns:
      The constitution, its principles in the file's order.

    Raises:
      UserError: no such file, not TOML, or something in it is missing, unknown, empty
        or of another type, or a template has other places than it should.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "short.toml"
    >>> _ = path.write_text('''
    ... [[principles]]
    ... name = "short"
    ... critique = "What could be left out?"
    ... revision = "Write it shorter."
    ... preference = "Which is shorter?"
    ... ''')
    >>> [principle] = read_constitution(path).principles
    >>> principle.revision
    'Write it shorter.'
    """
    path = Path(path)
    found = read_toml(path, ("principles", "templates"))
    principles = read_list(path, found, "principles", Principle)
    templates = found.get("templates", {})
    return Constitution(
        principles, make_entry(Templates, templates, f"{path}: [templates]")
    )
