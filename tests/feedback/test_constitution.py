"""Principles and rubrics in files, critiques and revisions in turn."""

import random

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import (
    Constitution,
    Criterion,
    Principle,
    Rubric,
    Scale,
    Templates,
    critique_and_revise,
    read_constitution,
    read_rubric,
    rubric_reward,
)

PRINCIPLE = """[[principles]]
name = "kind"
critique = "Where is it unkind?"
revision = "Make it kind."
preference = "Which is kinder?"
"""
ASKING = '[templates]\ncritique = "{response} {request}"\nanswers = ["x", "y"]\n'
KIND = Principle("kind", "Where is it unkind?", "Make it kind.", "Which is kinder?")


def test_a_file_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(PRINCIPLE + ASKING, "utf-8")
    expected = Templates(critique="{response} {request}", answers=("x", "y"))
    assert read_constitution(path) == Constitution((KIND,), expected)


def test_texts_are_put_where_they_belong_braces_and_all():
    asking = Templates(
        "{prompt}|{response}|{request}",
        "{response}|{critique}|{request}",
        "{first}|{second}|{request}|{{}}",
    )
    constitution = Constitution((KIND,), asking)
    assert constitution.critique(KIND, "p", "{x}") == "p|{x}|Where is it unkind?"
    assert constitution.revision(KIND, "p", "y", "c") == "y|c|Make it kind."
    assert constitution.preference(KIND, "p", "a", "b") == "a|b|Which is kinder?|{}"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", r"expected at least one \[\[principles\]\]"),
        ("principles = 3", r"expected at least one \[\[principles\]\]"),
        ("principles = [3]", r"\[\[principles\]\] 1: expected name, critique"),
        ("[[principle]]", "unknown table 'principle'; expected principles and temp"),
        ("[[principles", "not TOML"),
        (PRINCIPLE + 'x = "y"', "expected name, critique, revision, preference, and"),
        (PRINCIPLE.replace("Make it kind.", " "), "1: revision: expected a text"),
        (PRINCIPLE.replace('"kind"', "7"), "1: name: expected a text"),
        (PRINCIPLE.replace("name =", "# "), "1: name is missing"),
        (PRINCIPLE * 2, "two of .* are named 'kind'"),
        (PRINCIPLE + "[templates]\nx = 1", r"\[templates\]: expected critique"),
        (PRINCIPLE + "[templates]\ncritique = 1", "critique: expected a text"),
        (PRINCIPLE + '[templates]\ncritique = "{response}"', "expected .*{request}"),
        (PRINCIPLE + '[templates]\ncritique = "{reply}{request}"', "no other names"),
        (PRINCIPLE + '[templates]\nrevision = "{response.x}"', "no other names"),
        (PRINCIPLE + '[templates]\nrevision = "a { b"', "a brace itself is written"),
        (
            PRINCIPLE + '[templates]\nanswers = ["A"]',
            "answers = .*: expected two",
        ),
        (PRINCIPLE + '[templates]\nanswers = "AB"', "answers: expected a list"),
        (PRINCIPLE + '[templates]\nanswers = ["A", 2]', "answers: expected a text"),
    ],
)
def test_faults_are_named(tmp_path, text, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        read_constitution(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.toml: no such file"):
        read_constitution(tmp_path / "no.toml")


def test_revisions_begin_where_the_last_one_ended():
    """A model that numbers what it says: each question holds what was said before."""
    calls: list[tuple[list[str], int]] = []

    def reply(questions, seed):
        calls.append((list(questions), seed))
        return [f"<{len(calls)}.{i}>" for i in range(len(questions))]

    short = Principle("short", "Too long?", "Shorten it.", "Which is shorter?")
    asking = Templates("{response} {request}", "{response} {critique} {request}")
    transcripts = critique_and_revise(
        reply,
        Constitution((KIND, short), asking),
        ["p", "q", "r"],
        ["x", "y", "z"],
        revisions=2,
        rng=random.Random(3),
    )
    requests = {"kind": "Where is it unkind?", "short": "Too long?"}
    orders = {"kind": "Make it kind.", "short": "Shorten it."}
    assert len(calls) == 4 and len({seed for _, seed in calls}) == 4
    assert {step.principle for steps in transcripts for step in steps} == {*requests}
    for i, (steps, began) in enumerate(zip(transcripts, "xyz", strict=True)):
        before = began
        for n, step in enumerate(steps):
            assert step.critique_question == f"{before} {requests[step.principle]}"
            assert step.critique == f"<{2 * n + 1}.{i}>"
            asked = f"{before} {step.critique} {orders[step.principle]}"
            assert step.revision_question == asked
            assert step.response == (before := f"<{2 * n + 2}.{i}>")
            assert calls[2 * n][0][i] == step.critique_question
            assert calls[2 * n + 1][0][i] == step.revision_question


def test_no_revision_is_refused():
    with pytest.raises(ValueError, match="revisions is 0"):
        critique_and_revise(
            lambda questions, seed: [],
            Constitution((KIND,)),
            [],
            [],
            revisions=0,
            rng=random.Random(0),
        )


def test_a_rubric_is_a_weighted_mean_of_expected_ratings():
    """On 0, ½, 1: (0.2, 0.3, 0.5) gives 0.65, (1, 0, 0) gives 0; weights 3 and 1."""
    said = {"true?": [0.2, 0.3, 0.5], "short?": [1.0, 0.0, 0.0]}

    def ask(questions, answers):
        assert answers == ("1", "2", "3")
        with np.errstate(divide="ignore"):
            return np.log([said[question.split()[-1]] for question in questions])

    rubric = Rubric(
        (Criterion("truth", "true?", 3.0), Criterion("length", "short?")),
        Scale("{prompt} {response} {request}", ("1", "2", "3")),
    )
    reward = rubric_reward(ask, rubric)
    found = reward(prompts=["p", "q"], completions=["a", "b"], source=["x", "y"])
    assert found == pytest.approx(2 * [0.65 * 3 / 4])


def test_a_rubric_file_is_read(tmp_path):
    path = tmp_path / "rubric.toml"
    path.write_text('[[criteria]]\nname = "a"\nquestion = "b"\nweight = 2\n')
    assert read_rubric(path) == Rubric((Criterion("a", "b", 2.0),))


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("weight = 0", "weight = 0.0: expected more than 0"),
        ("weight = nan", "weight: expected a number"),
        ("weight = true", "weight: expected a number"),
        ('weight = "2"', "weight: expected a number"),
        ('[scale]\nanswers = ["1"]', "answers = .*: expected two or more"),
        ('[scale]\ntemplate = "{response}"', "expected .*{request}"),
    ],
)
def test_faults_of_a_rubric_are_named(tmp_path, text, complaint):
    path = tmp_path / "rubric.toml"
    path.write_text('[[criteria]]\nname = "a"\nquestion = "b"\n' + text)
    with pytest.raises(UserError, match=complaint) as caught:
        read_rubric(path)
    assert str(caught.value).startswith(str(path))
