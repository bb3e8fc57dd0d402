"""What people see: readable without a terminal, and model text as it is."""

import io
import sys

import jax
import pytest

from rlhf_jax.terminal import (
    memory_estimate,
    print_plan,
    print_table,
    progress,
    samples_table,
)


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_without_a_terminal(capsys):
    with progress("ppo", 3, done=0) as advance:
        for _ in range(3):
            advance({"reward": 1.0})
    assert capsys.readouterr() == ("", "")


def test_progress_shows_stage_numbers_and_count(monkeypatch):
    screen = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("ppo", 10, done=4) as advance:
        advance({"reward": 0.51234, "kl": 12})
    shown = screen.getvalue()
    for part in ("ppo", "5/10", "reward 0.512  kl 12"):
        assert part in shown


def test_table_is_readable_without_a_terminal(capsys):
    text = "a response of many words " * 20
    samples_table([text], [text], [text], scores_before=[0.5], scores_after=[-1.25])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert out.count("response") == 60  # nothing is cut off
    assert "0.5" in out and "-1.25" in out


def test_model_text_is_neither_markup_nor_control(capsys):
    text = "[red]x[/red] [/oops] \x1b[2J \r bell\x07"
    print_table("Texts", ["text"], [[text]])
    out = capsys.readouterr().out
    assert "[red]x[/red] [/oops]" in out
    assert "\x1b" not in out and "\r" not in out and "\x07" not in out


def test_numbers_stand_to_the_right(capsys):
    print_table("T", ["n", "s"], [[1.0, "a"], [123.456789, "b"]])
    lines = [x.rstrip() for x in capsys.readouterr().out.splitlines() if x.strip()]
    assert lines[-2:] == ["      1   a", "  123.5   b"]


def test_row_of_another_length_is_named():
    with pytest.raises(ValueError, match="T, row 2: 1 cells for 2 columns"):
        print_table("T", ["a", "b"], [[1, 2], [1]])


def test_samples_must_have_one_length():
    with pytest.raises(ValueError, match="zip"):
        samples_table(["a", "b"], ["a"], ["a"], scores_before=[1.0], scores_after=[1.0])


def test_memory_of_a_hand_sized_model():
    # 10 trained, 3 frozen; 8 tokens, 2 layers, D = 4, H = 2, T = 4, V = 16, bfloat16.
    memory = memory_estimate(
        trained=10,
        frozen=3,
        tokens=8,
        length=4,
        d_model=4,
        layers=2,
        heads=2,
        vocab_size=16,
        itemsize=2,
    )
    # 8 tokens · 2 layers · (34·4 + 5·2·4) values of a byte, and 8·16 logits of 4 bytes
    # with as many of their gradient.
    activations = 8 * 2 * (136 + 40) + 2 * 4 * 8 * 16
    assert memory == {
        "weights": 40,
        "gradients": 40,
        "optimizer": 80,
        "frozen": 12,
        "activations": activations,
        "total": 40 + 40 + 80 + 12 + activations,
    }


@pytest.mark.parametrize(
    "count, shown",
    [(0, "0 "), (999, "999"), (1000, "1 k"), (124_000_000, "124 M"), (7e9, "7 G")],
)
def test_plan_counts_in_thousands(capsys, count, shown):
    print_plan(
        "toy",
        parameters=count,
        steps=1000,
        tokens_per_step=65536,
        devices=jax.devices()[:2],
        memory={"weights": 2_000_000, "total": 3_000_000},
    )
    out = capsys.readouterr().out
    assert f"trained parameters           {shown}" in out
    assert "65,536" in out and "2 × cpu" in out
    assert "3 MB: weights 2 MB" in out
