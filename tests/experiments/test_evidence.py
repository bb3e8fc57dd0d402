"""The page of what scripts were measured to do is made of what runs have left."""

import functools
import json
import math
import re
import sys
from pathlib import Path

import pytest

from experiments import cli, coverage, evidence
from experiments.claims import CLAIMS, GRAMMAR_LOSS
from experiments.evidence import COMMANDS, Config, read_page
from experiments.evidence_lines import HEADER
from experiments.provenance import PROVENANCE
from rlhf_jax.data import demonstrations, load_tiny_reviews, train_tokenizer
from rlhf_jax.data import grammar as g
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import load_json

ROOT = Path(__file__).parents[2]
RUN = {
    "command": "python -m experiments.best_of_n --seed 3",
    "commit": "0123abc",
    "resumed": False,
    "seconds": 75.2,
    "cpu_seconds": 31.0,
    "ended": "2026-11-22T13:59:59+00:00",
    "cores": 2,
    "cpu": "Abacus",
    "devices": {"cpu": 1},
    "processes": 1,
    "returned": None,
}


def write_run(run_dir: Path, script: str, preset: str = "default", **said) -> Path:
    """What a run leaves, as far as the page reads it."""
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    named = {"script": f"experiments.{script}", "preset": preset}
    (run_dir / PROVENANCE).write_text(json.dumps(RUN | named | said))
    return run_dir


def grpo(run_dir: Path, gold: float, **said) -> Path:
    """A run of GRPO."""
    write_run(run_dir, "policy", "grpo", **said)
    summary = {"before/gold": -0.04, "after/gold": gold, "after/kl": 4.5}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


best_of_n = functools.partial(write_run, script="best_of_n")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_lines_have_the_runs_numbers_and_stay(tmp_path, monkeypatch):
    out = tmp_path / "README.md"
    out.write_text(f"# By hand\n\n{HEADER}{COMMANDS}```\n")
    with monkeypatch.context() as patch:  # a real run, from its command to its line
        options = "--run-dir", str(tmp_path / "coverage"), "--repetitions", "2"
        patch.setattr(sys, "argv", ["coverage", *options])
        default = {"default": coverage.Config()}
        cli.run(coverage.main, default, description="")
    evidence.main(Config((tmp_path / "coverage",), out))
    ends = load_json(tmp_path / "coverage/summary.json")
    least, most = [x for x in out.read_text().splitlines() if "of 33" in x]
    assert least.startswith("| [coverage](coverage.py) | default |  | least of 33 | ")
    assert most.startswith("|  |  |  | greatest of 33 | 0.93 … 0.97: ")
    for row, end in ((least, ends["least"]), (most, ends["most"])):
        assert f" | {end:.3f} | **not met** | " in row  # of two, all or none are inside
    command = f"python -m experiments.coverage --run-dir {tmp_path / 'coverage'}"
    assert f"\n{command} --repetitions 2\n" in out.read_text()

    two = (
        grpo(tmp_path / "a", 0.59),
        best_of_n(tmp_path / "b", returned={"gold/1": 0.25, "gold/n": 0.5}),
    )
    evidence.main(Config(two, out))
    above, lines = read_page(out)
    assert above == "# By hand\n\n"
    # In the order of the claims, each command with its own row.
    keys = ("policy", "grpo"), ("best_of_n", "default"), ("coverage", "default")
    assert tuple(lines) == keys and lines[keys[2]].rows == f"{least}\n{most}"
    before, after, kl = map(cells, lines[keys[0]].rows.splitlines())
    assert before[2:4] == [
        "[2402.03300](https://arxiv.org/abs/2402.03300)",
        "gold before",
    ]
    assert before[5:] == [
        *("-0.040", "met", "1 min 15 s, CPU 31 s", "2 cores (Abacus)"),
        *("2026-11-22", "0123abc"),
    ]
    assert after[3] == "gold after" and after[4].startswith("≥ 0.35: a gain of 0.4")
    assert after[5:] == ["0.590", "met", "", "", "", ""]
    assert kl[3:7] == ["KL (nats)", "≤ 15: the quickstart's bound", "4.500", "met"]
    one, best = map(cells, lines[keys[1]].rows.splitlines())
    assert one[5:7] == ["0.250", "**not met**"] and best[5:7] == ["0.500", "met"]
    assert lines[keys[1]].command == (
        "# best_of_n, default: 2 cores (Abacus)\n"
        "python -m experiments.best_of_n --seed 3"
    )

    # Another run takes the place of the first, and of nothing else.
    later = grpo(tmp_path / "c", 0.3, resumed=True, devices={"TPU v5e": 4})
    evidence.main(Config((later,), out))
    _, after = read_page(out)
    before, gold, kl = map(cells, after[keys[0]].rows.splitlines())
    assert before[7:9] == [
        "more than 1 min 15 s, CPU 31 s: resumed",
        "4 × TPU v5e, 2 cores (Abacus)",
    ]
    assert [row[6] for row in (before, gold, kl)] == ["met", "**not met**", "met"]
    assert [after[key] for key in keys[1:]] == [lines[key] for key in keys[1:]]


def test_a_line_without_a_claim_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "README.md"
    both = (
        grpo(tmp_path / "a", 0.59),
        best_of_n(tmp_path / "b", returned={"gold/1": 0.0, "gold/n": 0.5}),
    )
    evidence.main(Config(both, out))
    _, lines = read_page(out)
    monkeypatch.delitem(CLAIMS, ("policy", "grpo"))
    evidence.main(Config(both[1:], out))
    assert read_page(out)[1] == lines


def refused(config: Config) -> str:
    with pytest.raises(UserError) as error:
        evidence.main(config)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_makes_no_line(tmp_path):
    out = tmp_path / "README.md"
    assert "no run directory: expected one" in refused(Config((), out))
    empty = tmp_path / "empty"
    empty.mkdir()
    said = refused(Config((empty,), out))
    assert f"{empty}: no config.json" in said and "expected a run directory" in said
    (empty / "config.json").write_text("{}")
    said = refused(Config((empty,), out))
    assert f"no {PROVENANCE}" in said and said.endswith("run its script to its end")
    said = refused(Config((write_run(tmp_path / "no", "chat"),), out))
    assert "experiments.chat with preset default" in said and "claims.py: add" in said
    lacks = best_of_n(tmp_path / "lacks", returned={"kl": 1.8})
    assert "lacks: has no gold/1: expected it" in refused(Config((lacks,), out))
    unknown = best_of_n(tmp_path / "nan", returned={"gold/1": None, "gold/n": 0.5})
    assert "gold/1 is None: expected a number" in refused(Config((unknown,), out))
    twice = grpo(tmp_path / "a", 0.6), grpo(tmp_path / "b", 0.6)
    assert "the second run of policy grpo" in refused(Config(twice, out))
    assert not out.exists()
    nowhere = Config(twice[:1], tmp_path / "no folder/README.md")
    assert "no such folder" in refused(nowhere)
    out.write_text("# Another page\n")
    assert "has no table of runs" in refused(Config(twice[:1], out))
    out.write_text(f"{HEADER}| by hand |\n{COMMANDS}# a\npython\n```\n")
    assert "expected a row of a run, found '| by hand |'" in refused(
        Config(twice[:1], out)
    )
    out.write_text(f"{HEADER}| a |\n| b |\n{COMMANDS}# a\npython\n```\n")
    assert "2 runs and 1 commands" in refused(Config(twice[:1], out))


def test_the_page_is_as_it_would_be_written():
    page = ROOT / "experiments/README.md"
    _, lines = read_page(page)
    for (script, preset), line in lines.items():
        assert (ROOT / f"experiments/{script}.py").is_file()
        [_, command] = line.command.splitlines()
        assert command.split()[:3] == ["python", "-m", f"experiments.{script}"]
        named = re.search(r"--preset (\w+)", command)
        assert named is None or named[1] == preset
        assert "dirty" not in line.rows


def test_claims_name_scripts_and_papers_that_there_are():
    docs = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/*.py")]
    docs = [path for path in docs if path.stem != "claims"]
    text = "".join(path.read_text(encoding="utf-8") for path in docs)
    for (script, preset), claim in CLAIMS.items():
        source = (ROOT / f"experiments/{script}.py").read_text(encoding="utf-8")
        assert "cli.run(" in source, script
        assert preset == "default" or f"`{preset}`" in text, preset
        assert all(paper in text for paper in claim.papers), script


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def intensified(words: list[str], count: int) -> float:
    return math.log(0.5 / count if words else 0.5)


def grammar_logprob(review: str) -> float:
    """Nats, read back from the text clause by clause: the grammar is unambiguous."""
    good, total = [], 0.0
    for clause in review.strip(" .").split(" . "):
        words = clause.split()
        if words[0] == "i" and words[1] != "saw":  # i quite loved the plot
            word, between = words[-3], words[1:-3]
            good.append(g.VERBS[word] > 0)
            total += math.log(0.3 / 3) + intensified(between, 3)
        elif words[0] == "the" and words[2] == "was" and words[3] == "not":
            good.append(g.ADJECTIVES[words[4]] < 0)
            total += math.log(0.7 * 0.06 / 7)
        elif words[0] == "the" and words[1] in g.ASPECTS:  # the plot was very good
            good.append(g.ADJECTIVES[words[-1]] > 0)
            total += math.log(0.7 * 0.94 / 7) + intensified(words[3:-1], 4)
        else:
            total -= math.log(3 * 4 * 8)  # its place, its kind, its word
    n, k = len(good), sum(good)
    three = math.log(0.6 / (12 * 11 * 10)), math.log(0.4 / (12 * 11))
    signs = log_beta(0.4 + k, 0.4 + n - k) - log_beta(0.4, 0.4)
    return total + signs + three[0 if n == 3 else 1]


def test_the_loss_of_the_grammar_itself(tmp_path):
    """On the held-out reviews, in tokens of the tokenizer that SFT trains."""
    learned, held_out = (
        demonstrations(load_tiny_reviews("reviews", part, data_dir=tmp_path))
        for part in ("train", "test")
    )
    tokenizer = train_tokenizer((e.prompt + e.completion for e in learned), 512)
    spelt = tokenizer([e.completion for e in held_out])["input_ids"]
    tokens = sum(len(ids) + 1 for ids in spelt)  # and the end
    nats = -sum(grammar_logprob(e.completion) for e in held_out)
    assert round(nats / tokens, 3) == GRAMMAR_LOSS
