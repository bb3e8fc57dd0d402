"""The page shows what is in the files, all of it as text, and only that."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from report.made import LONG, SCRIPT, log, write_lines

from rlhf_jax.report import main, write_page
from rlhf_jax.rundir import RunError
from rlhf_jax.tracking import read_metrics

VOID = {"meta", "br", "path", "use", "rect", "image"}


class Read(HTMLParser):
    """Sections, tables and texts of a page, found without the code that wrote them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sections = [], [], []
        self.cells, self.data, self.said = [], [], []  # of each row; values; texts
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append({"text": "", "values": []})
        if tag == "data":
            self.data.append({"exact": given["value"], "text": ""})
            if self.cells and self._inside("td"):
                self.cells[-1][-1]["values"].append(self.data[-1])
        if given.get("class") == "said" and tag == "p":
            self.said.append("")
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self._inside("td") or self._inside("th"):
            self.cells[-1][-1]["text"] += data
        if self._inside("data"):
            self.data[-1]["text"] += data
        if any(t == "p" and g.get("class") == "said" for t, g in self.open):
            self.said[-1] += data

    def _inside(self, tag):
        return any(name == tag for name, _ in self.open)

    def row(self, name):
        """The cells of the first row that begins so."""
        return next(c for c in self.cells if c[0]["text"].strip().startswith(name))


def as_float(text):
    """A number as it is read off the page."""
    words = {"NaN": math.nan, "∞": math.inf, "−∞": -math.inf}
    return words.get(text) or float(text.replace(",", "").replace("−", "-"))


def test_numbers_are_those_of_the_file(root, page):
    """Exactly in their attributes, and to four digits in the text."""
    read = Read(page)
    for stage in ("ppo", "reward"):
        rows = read_metrics(root / "ppo" / stage / "metrics.jsonl")
        for name in rows[0].keys() - {"step"}:
            steps = [row["step"] for row in rows]
            values = [row[name] for row in rows]
            low, high = np.nanargmin(values), np.nanargmax(values)
            cells = read.row(name)[1:]
            for cell, index in zip(cells, [0, -1, low, high], strict=True):
                [found] = cell["values"]
                assert float(found["exact"]) == values[index]
                assert as_float(found["text"]) == pytest.approx(values[index], 5e-4)
                assert cell["text"].endswith(f"at {steps[index]}")
    last = read_metrics(root / "ppo/ppo/metrics.jsonl")[-1]
    for name in ("objective/gold", "objective/kl", "policy/loss"):  # beside its plot
        assert [d["exact"] for d in read.data].count(repr(last[name])) >= 2


def test_results_are_those_of_the_summary(root, page, both):
    summary = json.loads((root / "ppo/summary.json").read_text())
    read = Read(page)
    _, before, after, change = read.row("Gold reward")
    assert before["values"][0]["exact"] == repr(summary["before/gold"])
    assert after["values"][0]["exact"] == repr(summary["after/gold"])
    assert (before["text"], after["text"], change["text"]) == (
        "0.000",
        "0.400",
        "+0.400",
    )
    [accuracy] = read.row("Reward model: accuracy")[1:]
    assert accuracy["values"][0]["exact"] == "0.8331"
    assert "Ended: KL budget &lt;script&gt;" in page
    ends = [cell["values"][1]["exact"] for cell in Read(both).row("KL from the")[1:]]
    assert ends == ["3.15", "3.23"]


def test_what_is_hostile_is_text(page, both):
    for text in (page, both):
        tags = Read(text).tags
        assert "script" not in {tag for tag, _ in tags}
        assert not [a for _, given in tags for a in given if a.startswith("on")]
        assert "&lt;script&gt;document.title" in text and "\x00" not in text
        links = [given[a] for _, given in tags for a in ("href", "src") if a in given]
        assert links and all(link.startswith("#") for link in links)  # no network


def test_tokens_joined_are_the_completion(root, page):
    samples = (root / "ppo/ppo/samples.jsonl").read_text().splitlines()
    said = Read(page).said  # before; after; and what changed between them
    for line, (before, after, changed) in zip(
        samples, np.reshape(said, (-1, 3)), strict=False
    ):
        row = json.loads(line)
        assert before == row["before"]["completion"]
        assert after == row["after"]["completion"]
        assert changed == "a dull fine film, and warm ."


def test_the_shade_is_the_size_and_the_sign(root, page):
    """A token of 0.9 times the scale has shade 7 of 8; the scale is 1 nat."""
    row = json.loads((root / "ppo/ppo/samples.jsonl").read_text().splitlines()[0])
    assert "−1 nats" in page and "+1 nats" in page
    for text, kl in zip(row["after"]["tokens"], row["after"]["kl"], strict=True):
        level = round(8 * abs(kl))
        shade = f' class="{"p" if kl > 0 else "n"}{level}"' if level else ""
        sign = "+" if kl > 0 else "−"
        assert f'<span{shade} title="{sign}{abs(kl):.2f} nats">{text}</span>' in page


def test_equal_runs_give_equal_bytes(root, page, tmp_path):
    shutil.copytree(root / "ppo", tmp_path / "ppo")
    (tmp_path / "ppo/report.html").unlink()
    assert write_page([tmp_path / "ppo"]).read_text(encoding="utf-8") == page


def test_sections_are_there_where_their_files_are(page, tmp_path):
    every = "result frontier curves samples calibration faults quarantine options"
    assert Read(page).sections == every.split()
    log(tmp_path / "a", [(1, {"sft/loss": 2.0})])
    assert Read(write_page([tmp_path / "a"]).read_text()).sections == ["curves"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/summary.json").write_text('{"win_rate": 0.5}')
    assert Read(write_page([tmp_path / "b"]).read_text()).sections == ["result"]
    (tmp_path / "c").mkdir()
    with pytest.raises(RunError, match=r"c: no metrics\.jsonl here"):
        write_page([tmp_path / "c"])


def test_options_that_differ_and_no_others(page, both):
    read = Read(both)
    name, *values = read.row("ppo.algorithm.kl.coef")
    assert [value["text"] for value in values] == ["0.1", "0.02"]
    assert "1 more are the same" in both
    assert not [cells for cells in read.cells if cells[0]["text"] == "ppo.seed"]
    assert [cells for cells in Read(page).cells if cells[0]["text"] == "ppo.seed"]
    assert "run_dir" not in both


def test_how_a_run_was_made(page, both):
    seconds = "3 min 5 s, CPU 5 min 7 s"
    made = f"code 0123abc, 2026-11-22, {seconds}, 4 × TPU v5e, 2 cores (A Processor)"
    assert f">{made}</dd>" in page
    assert f">ppo: {made}</dd>" in both
    resumed = made.replace(seconds, f"more than {seconds}: resumed")
    assert f">{LONG}: {resumed}</dd>" in both
    assert "<code>python -m experiments.quickstart --note &#39;&lt;script" in page


def test_samples_of_runs_stand_side_by_side_where_prompts_agree(root, both, tmp_path):
    """Before is there once, as both began alike."""
    heads = [r"Before</h5>", r"After, ppo</h5>", f"After, {LONG}</h5>"]
    assert [len(re.findall(head, both)) for head in heads] == [12, 12, 12]
    shutil.copytree(root / LONG, tmp_path / "other")
    samples = tmp_path / "other/ppo/samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    write_lines(samples, [row | {"prompt": "another"} for row in rows])
    apart = write_page([root / "ppo", tmp_path / "other"], tmp_path / "apart.html")
    text = apart.read_text()
    assert text.count("Before</h5>") == 24 and "<h3>other / ppo</h3>" in text


def test_samples_without_kl_and_of_plain_text(tmp_path):
    log(tmp_path, [(1, {"sft/loss": 2.0})])
    after = {"completion": "a good film"}
    row = {"prompt": "p", "before": "a bad film", "after": after}
    write_lines(tmp_path / "samples.jsonl", [row])
    text = write_page([tmp_path]).read_text()
    assert "<del>bad </del><ins>good </ins>" in text and "title=" not in text


def test_a_first_row_of_faults_and_of_what_was_put_aside(page):
    read = Read(page)
    what = read.row("7")[1]["text"]
    assert what == "1 of 4 updates skipped; policy/loss = NaN; rows 3, 4"
    spike = read.row("9")[1]["text"]
    assert spike == 'spike: {"policy/loss": 9.0, "median": 1.5}; rows 5'
    assert read.row("22")[1]["text"] == f"{SCRIPT} (warn)"
    assert read.row("column 'chosen': expected text")[1]["text"] == "7"


def test_what_cannot_be_read_or_written_is_named(root, tmp_path, capsys):
    with pytest.raises(RunError, match="7 runs: expected one to 6"):
        write_page([root] * 7)
    with pytest.raises(RunError, match="is named twice"):
        write_page([root / "ppo", root / "." / "ppo"])
    log(tmp_path, [(1, {"sft/loss": 2.0})])
    with pytest.raises(RunError, match="choose another place with --out"):
        write_page([tmp_path], tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"prompt": "p"}\n{"pro\n')
    with pytest.raises(RunError, match=r"samples.jsonl:2: not JSON"):
        write_page([tmp_path])
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_writes_one_page_of_several_runs(tmp_path, capsys, monkeypatch):
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        log(run, [(1, {"sft/loss": 2.0})])
    out = tmp_path / "both.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    pictures = [f"{run}/report.png" for run in runs]
    assert capsys.readouterr().out.split() == [*pictures, str(out)]
    monkeypatch.chdir(tmp_path)
    assert write_page(runs).read_bytes() == out.read_bytes()
    assert (tmp_path / "report.html").is_file()
