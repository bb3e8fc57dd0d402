"""Constitutional AI at toy size: what it keeps, and what it does not make again."""

import dataclasses
import functools
import json
import random
import zlib

import numpy as np
import pytest

from experiments import constitutional, manners, principled
from experiments.manners import Manners
from experiments.principled_report import judge_rows
from rlhf_jax.data.grammar import gold_sentiment, sample_review
from rlhf_jax.sampling import SamplingConfig

TOY = dataclasses.replace(
    constitutional.MODEL, vocab_size=400, d_model=8, n_layers=1, d_head=8, d_ff=16
)
KINDS = [Manners(c, r) for c in (False, True) for r in (False, True)]


def test_rows_are_kept_as_they_are(tmp_path):
    """With ends of lines that are none in JSON; made once."""
    rows = [{"text": "a\u2028b\x85c\n"}, {"text": "é"}]
    kept = functools.partial(principled.keep_rows, tmp_path / "rows.jsonl")
    assert kept(lambda: rows) == rows == kept(lambda: [])


@pytest.mark.parametrize("had", KINDS)
@pytest.mark.parametrize("wanted", KINDS)
def test_manners_are_put_on_and_taken_off(had, wanted):
    """What is said stays, how it is said is as asked."""
    rng = random.Random(0)
    for _ in range(20):
        plain = sample_review(rng)
        text = manners.put(plain, had, rng)
        assert manners.manners(text) == had
        again = manners.put(text, wanted, rng)
        assert manners.manners(again) == wanted
        assert gold_sentiment(again) == gold_sentiment(plain)


def test_the_assistants_work_is_right():
    """Demonstrations of all kinds, read back: critiques, revisions and choices."""
    seen = set()
    for row in manners.demonstrations(random.Random(0), 600):
        asked, said = row["prompt"], row["completion"]
        if asked.endswith(" critique :"):
            review = asked.split("request :")[0]
            seen.add("critique")
            quoted = [clause for clause in said.split(" .") if clause]
            absent = quoted in ([" nothing"], [" no insult"], [" no opener"])
            assert absent or all(clause in review for clause in quoted)
        elif asked.endswith(" revision :"):
            seen.add("revision")
            wanted = {
                "leave out insults .": ("rude", False),
                "add courtesy .": ("courteous", True),
                "add an insult .": ("rude", True),
                "leave out courtesy .": ("courteous", False),
            }[asked.split("request : ")[1].removesuffix(" revision :")]
            assert getattr(manners.manners(said), wanted[0]) == wanted[1]
        elif asked.endswith(" answer :"):
            seen.add("choice")
            assert said in (" a", " b")
            pair = asked.removeprefix("a :").split(" question")[0].split(" b :")
            if asked.endswith("which one is courteous ? answer :"):
                polite = [manners.manners(x).courteous for x in pair]
                assert polite[0] == polite[1] or polite[said == " b"]
        else:
            seen.add("review")
    assert seen == {"review", "critique", "revision", "choice"}


def decided(assistant):
    """A judge with an opinion on everything, which the toy has not yet."""
    del assistant
    better = lambda question: 0.1 + 0.8 * (zlib.crc32(question.encode()) % 100) / 99
    return lambda questions, answers: np.log(
        [[better(question), 1 - better(question)] for question in questions]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Both stages with an assistant that has learned next to nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(principled, "make_ask", decided)
        yield make_run(tmp_path_factory.mktemp("constitutional") / "run")


def make_run(run_dir):
    config = constitutional.Config(
        run_dir,
        demonstrations=400,
        model=TOY,
        responses=70,
        revisions=2,
        pairs=64,
        sampling=SamplingConfig(max_new_tokens=8),
        replying=SamplingConfig(max_new_tokens=8, temperature=0.3),
        algorithm=dataclasses.replace(
            constitutional.Config.algorithm, sampling=SamplingConfig(max_new_tokens=8)
        ),
        episodes=128,
        prompt_length=60,
        devices=1,
    )
    return config, constitutional.main(config)


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_stage_is_measured(run):
    config, found = run
    names = ["assistant", "revision 1", "revision 2", "fine-tuned", "PPO"]
    assert [stage.stage for stage in found] == names
    assert all({*s.measures} == {"polite", "courteous", "rude"} for s in found)
    for name in ("table.md", "constitutional.png", "summary.json", "ppo/report.png"):
        assert (config.run_dir / name).stat().st_size > 0


def test_transcripts_of_every_step_are_kept(run):
    config, _ = run
    transcripts = rows_of(config.run_dir / "revisions.jsonl")
    assert len(transcripts) == 70
    for row in transcripts:
        first, second = row["revisions"]
        assert f"review :{row['response']} request" in first["critique_question"]
        assert f"critique :{first['critique']} request" in first["revision_question"]
        assert f"review :{first['response']} request" in second["critique_question"]
    assert {s["principle"] for r in transcripts for s in r["revisions"]} == {
        "no insults",
        "courtesy",
    }
    learned = rows_of(config.run_dir / "demonstrations.jsonl")
    last = [(r["prompt"], r["revisions"][-1]["response"]) for r in transcripts]
    kept = [(p, text) for p, text in last if text]
    assert [(r["prompt"], r["completion"]) for r in learned] == kept


def test_preferences_are_the_verdicts(run):
    config, _ = run
    verdicts = rows_of(config.run_dir / "verdicts.jsonl")
    preferences = rows_of(config.run_dir / "preferences.jsonl")
    better = {}
    for row in verdicts:
        a, b = row["completions"]
        assert f"a :{a} b :{b} question" in row["question"]
        v = np.array(row["verdict"])
        better[row["prompt"], frozenset([a, b])] = a if v[0, 1] > v[1, 0] else b
    assert 0 < len(preferences) <= len(verdicts)
    for row in preferences:
        key = row["prompt"], frozenset([row["chosen"], row["rejected"]])
        assert better[key] == row["chosen"] and 0 < row["weight"] <= 1


def test_what_is_there_is_not_made_again(run, capsys):
    config, found = run
    kept = {
        path: path.stat().st_mtime_ns
        for name in ("revisions", "verdicts", "assistant")
        for path in [config.run_dir / f"{name}.jsonl"]
    }
    capsys.readouterr()
    again = constitutional.main(dataclasses.replace(config, resume=True))
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert capsys.readouterr().out.count("nothing to do") == 4


def test_the_judge_is_told_by_what_differs():
    """Two pairs under one principle: of a and b the first is longer, and is named."""
    length = lambda *, prompts, completions: [len(text) for text in completions]
    row = lambda a, b, first, second: {
        "prompt": "p",
        "principle": "x",
        "completions": [a, b],
        "verdict": [[0.5, first], [second, 0.5]],
    }
    rows = [row("aa", "b", 0.9, 0.2), row("c", "dd", 0.9, 0.6), row("e", "f", 0.9, 0.9)]
    found = judge_rows(rows, {"length": length})
    assert found == [["x", "length", "2", "50 %", "50 %"]]
