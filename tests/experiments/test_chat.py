"""Answers of a policy with numbers that a full forward pass confirms."""

import io
import sys

import jax
import numpy as np
import pytest

from experiments import chat
from experiments.talking import make_answer, prompt_ids
from rlhf_jax.data import right_padded
from rlhf_jax.errors import UserError
from rlhf_jax.models import policy_apply, score_apply
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_policy, load_stage

PROMPT = "the film was"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def config(toys, **changes) -> chat.Config:
    given = {
        "policy": toys.root / "teacher",
        "reference": toys.root / "sft",
        "reward": str(toys.root / "reward"),
        "sampling": SamplingConfig(max_new_tokens=8, temperature=0.7),
    }
    return chat.Config(**given | changes)


def talk(asked, lines, monkeypatch, capsys) -> list[str]:
    """What a pipe of lines prints."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{x}\n" for x in lines)))
    chat.main(asked)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module", autouse=True)
def teacher(toys):
    """A policy that is further on than its reference."""
    toys.teacher()


def logprobs(policy, prompt, said) -> np.ndarray:
    """log π of each token said, from logits of the whole row: no cache, no sampler."""
    batch = right_padded([prompt], [tuple(said)], length=64, pad_id=0)
    logits = policy_apply(policy.model)(policy.params, batch).logits[0]
    logits = np.asarray(logits, np.float64) / 0.7
    each = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    columns = range(len(prompt) - 1, len(prompt) + len(said) - 1)
    return np.array([each[t, token] for t, token in zip(columns, said, strict=True)])


def test_score_and_kl_are_those_of_a_full_forward_pass(toys):
    """Of the left-padded, sampled row: as of a row of its own, read once."""
    policy, reference = (load_policy(toys.root / n) for n in ("teacher", "sft"))
    reward = load_stage(toys.root / "reward", "reward", option="--reward")
    asked = SamplingConfig(8, temperature=0.7, stop_ids=policy.stop_ids)
    answer = make_answer(policy, reference, reward, asked, kind="score")
    prompt = prompt_ids((), PROMPT, policy.tokenizer, longest=120)
    said = answer(prompt, jax.random.key(3))
    kl = logprobs(policy, prompt, said.ids) - logprobs(reference, prompt, said.ids)
    assert said.kl is not None and said.score is not None
    np.testing.assert_allclose(said.kl, kl, atol=2e-5)
    assert np.abs(kl).max() > 1e-3
    row = right_padded([prompt], [tuple(said.ids)], length=64, pad_id=0)
    scores = score_apply(reward.model)(reward.whole(), row)
    last = len(prompt) + len(said.ids) - 1
    assert said.score == pytest.approx(float(scores[0, last, 0]), abs=1e-5)
    assert "".join(said.tokens) == said.text
    assert said.ended == (said.ids[-1] in policy.stop_ids)
    assert said.ended or len(said.ids) == 8


def test_lines_of_a_pipe(toys, monkeypatch, capsys):
    """A seed draws the same again; no sign asks for a line, no escape colours one."""
    lines = [PROMPT, "", PROMPT, "/seed 0", PROMPT, "/quit", "never"]
    printed = talk(config(toys), lines, monkeypatch, capsys)
    facts = [line for line in printed if line.startswith("  score ")]
    assert len(facts) == 3 and facts[0] == facts[2] != facts[1]
    assert "KL " in facts[0] and " nats (" in facts[0]
    assert not any("›" in line or "\x1b" in line for line in printed)
    alone = config(toys, reference=None, reward=None)
    [said] = talk(alone, [PROMPT], monkeypatch, capsys)[-1:]
    assert "score" not in said and "KL" not in said and "token" in said


def test_a_conversation_where_there_is_a_template(toys, monkeypatch, capsys):
    seen = []

    def with_template(path, pretrained):
        stage = load_policy(path, pretrained)
        stage.tokenizer.chat_template = TEMPLATE
        return stage

    def asked(messages, line, *rest, **options):
        ids = prompt_ids(messages, line, *rest, **options)
        seen.append((len(messages), len(ids)))
        return ids

    monkeypatch.setattr(chat, "load_policy", with_template)
    monkeypatch.setattr(chat, "prompt_ids", asked)
    talk(config(toys), ["a", "b", "/reset", "a"], monkeypatch, capsys)
    (first, short), (second, long), again = seen
    assert (first, second) == (0, 2) and long > short and again == (0, short)
    with pytest.raises(UserError, match=r"120 fit beside .* begin .* with /reset"):
        talk(config(toys), ["a", "b" * 300], monkeypatch, capsys)


def test_tokens_are_shaded_on_a_terminal_alone(toys, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", screen)
    said = chat.Answer("good bad", [1, 2], ["good", " bad"], [2.0, 0.0], None, True)
    chat.show(said)
    shown = screen.getvalue()
    assert (
        "\x1b[" in shown.split("good")[0] and "\x1b[" not in shown.split(" bad")[0][-1]
    )


@pytest.mark.parametrize(
    "line, changes, message",
    [
        ("/what", {}, "/what: no such command; expected /reset, /seed N or /quit"),
        ("x" * 400, {}, r"prompt has \d+ tokens, and 120 fit .*: shorten it"),
        (PROMPT, {"reference": "reward"}, "--reference .*holds a reward model"),
        (PROMPT, {"reference": "none"}, "--reference .*none: neither"),
    ],
)
def test_what_is_wrong_is_said(toys, monkeypatch, capsys, line, changes, message):
    changes = {name: toys.root / value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        talk(config(toys, **changes), [line], monkeypatch, capsys)
    with pytest.raises(UserError, match="completions = 2: expected 1"):
        chat.Config(sampling=SamplingConfig(8, completions=2))
