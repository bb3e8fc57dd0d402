"""The loop at toy size: two rounds, stopped anywhere; people simulated and real."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments import loop, loop_report
from experiments.loop_labels import agreed_pairs, simulated_labels
from experiments.loop_report import accuracy, measure, report, show
from experiments.loop_round import Round, fresh_prompts, write_once
from experiments.simulation import make_crowd
from rlhf_jax.data import Preference, Row, preferences, read_rows, write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.optim import OptimConfig
from rlhf_jax.sampling import SamplingConfig

FILES = (
    "completions.jsonl labels.jsonl learned.jsonl held_out.jsonl truth.jsonl "
    "reward.json fresh.json ppo.json ppo/samples.jsonl"
).split()


@pytest.fixture
def toy(toys, tmp_path, monkeypatch):
    """A config of two rounds; the truth counts letters, so that toys differ by it."""
    (tmp_path / "letters.py").write_text(
        "def gold(*, prompts, completions):\n"
        "    return [len(set(text)) / 10 for text in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loop, "keep_compiled", lambda path: None)  # for all tests

    def config(name: str, **changes) -> loop.Config:
        optim = OptimConfig(learning_rate=1e-3, schedule="constant")
        asked = loop.Config(
            tmp_path / name,
            (0,),
            rounds=2,
            policy=toys.root / "sft",
            data=toys.data("prompts", 40),
            prompt_length=64,
            gold="letters:gold",
            prompts=12,
            sampling=SamplingConfig(6, completions=3),
            epochs=1,
            optim=optim,
            ppo_optim=optim,
            episodes=32,
            batch_size=16,
            devices=1,
        )
        return dataclasses.replace(asked, **changes)

    return config


def contents(run: Path) -> dict[str, bytes]:
    """What every round has left, and the table."""
    paths = [run / f"seed0/round{n}/{name}" for n in (1, 2) for name in FILES]
    paths += [run / "seed0/round2/stale.json", run / "table.md"]
    # The path of the run is in the labels.
    return {
        str(path.relative_to(run)): path.read_bytes().replace(bytes(run), b"run")
        for path in paths
    }


@pytest.mark.slow
def test_two_rounds_and_a_run_that_is_stopped(toy, tmp_path, monkeypatch):
    results = loop.main(toy("whole"))
    assert [r["round"] for r in results] == [1, 2]
    assert [r["labels"] for r in results] == [12, 24]
    assert "stale" not in results[0] and 0 <= results[1]["stale"]["labels"] <= 1
    run = tmp_path / "whole/seed0"
    asked = [
        {row.values["prompt"] for row in read_rows(run / f"round{n}/completions.jsonl")}
        for n in (1, 2)
    ]
    assert not asked[0] & asked[1]
    learned = preferences(read_rows(run / "round2/learned.jsonl"))
    held = preferences(read_rows(run / "round1/held_out.jsonl"))
    held += preferences(read_rows(run / "round2/held_out.jsonl"))
    assert {p.prompt for p in learned} < asked[0] | asked[1]
    assert {p.prompt for p in learned} & asked[0]  # old and new are mixed
    assert not {p.prompt for p in learned} & {p.prompt for p in held}
    table = (tmp_path / "whole/table.md").read_text().splitlines()
    assert len(table) == 5 and table[2].startswith("| SFT | 0 | – | – | – |")
    assert (tmp_path / "whole/loop.png").stat().st_size > 1000

    # Stopped within the first round's PPO, and before the second's labels.
    real = loop.policy.main, loop.simulated_labels
    ran = []

    def stop(*args):
        raise KeyboardInterrupt

    def count(config):
        ran.append(config.run_dir)
        return real[0](config)

    config = toy("parts")
    monkeypatch.setattr(loop.policy, "main", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.main(config)
    monkeypatch.setattr(loop.policy, "main", count)
    with pytest.raises(UserError, match="--resume"):
        loop.main(config)
    config = dataclasses.replace(config, resume=True)
    loop.main(dataclasses.replace(config, rounds=1))
    monkeypatch.setattr(loop, "simulated_labels", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.main(config)
    monkeypatch.setattr(loop, "simulated_labels", real[1])
    loop.main(config)
    assert len(ran) == 2  # each round's PPO once
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    loop.main(config)
    assert len(ran) == 2
    with pytest.raises(UserError, match="kl_coef"):
        loop.main(dataclasses.replace(config, kl_coef=0.5))


def exported(folder: Path, who: tuple[str, ...]) -> None:
    """Rankings as the page exports them."""
    (folder / "labels").mkdir(exist_ok=True)
    rows = [
        {
            "item": "0",
            "prompt": row.values["prompt"],
            "completions": row.values["completions"],
            "ranks": [*range(len(row.values["completions"]))][::turn],
            "annotator": number,
            "annotator_name": name,
            "repeat": False,
        }
        for row in read_rows(folder / "completions.jsonl")
        for number, (name, turn) in enumerate(zip(who, (1, 1, -1), strict=False))
    ]
    write_rows(rows, folder / "labels/rankings.jsonl")


@pytest.mark.slow
def test_real_people(toy, tmp_path, capsys):
    config = toy("people", annotators=("ann", "ben b", "eve"), votes=3, gold=None)
    assert loop.main(config) == []
    here = tmp_path / "people/seed0/round1"
    shown = capsys.readouterr().out
    page, labels = "  python -m rlhf_jax.feedback", here / "labels"
    assert (
        f"{here}/completions.jsonl waits for people: serve it, export what they say, "
        "resume\n" in shown
    )
    for command in (
        f"{page} serve --completions {here}/completions.jsonl --annotators ann 'ben b' "
        f"eve --votes 3 --run-dir {labels}\n",
        f"{page} export {labels}\n",
        f"{page} agreement {labels}/rankings.jsonl\n",
    ):
        assert command in shown
    assert shown.rstrip().endswith("then the same command again, with --resume")
    config = dataclasses.replace(config, resume=True)
    assert loop.main(config) == []  # nothing is there yet
    assert not (here / "labels.jsonl").exists()

    exported(here, config.annotators)
    written = (here / "labels/rankings.jsonl").read_text()
    strange = written.replace('"prompt": "', '"prompt": "not ', 1)
    (here / "labels/rankings.jsonl").write_text(strange)
    message = "rankings.jsonl:1: not of the completions in .*round1/completions.jsonl"
    with pytest.raises(UserError, match=message):
        loop.main(config)
    (here / "labels/rankings.jsonl").write_text(written)
    [result] = loop.main(config)  # and waits for the second round
    assert "12 of 12 items are judged" in (shown := capsys.readouterr().out)
    assert "seed0/round2/completions.jsonl waits for people" in shown
    assert result["labels"] == 36 and result["fresh"]["truth"] is None
    assert "after/gold" not in result["ppo"]
    pairs = preferences(read_rows(here / "learned.jsonl"))
    rows = map(json.loads, written.splitlines())
    said = {row["prompt"]: row["completions"].index for row in rows}
    better = [p for p in pairs if p.weight > 1 / 6]  # 3 pairs an item
    places = [(said[p.prompt](p.chosen), said[p.prompt](p.rejected)) for p in better]
    assert places and all(first < second for first, second in places)
    # Later exports change nothing: the labels of a round are kept.
    (here / "labels/rankings.jsonl").unlink()
    assert len(loop.main(config)) == 1


def test_each_person_and_round_has_randomness_of_their_own(tmp_path):
    crowd = make_crowd(4, 0)
    rows = [
        {"prompt": f"p{n}", "completions": ["a", "b", "c"], "golds": [0.0, 0.1, 0.2]}
        for n in range(40)
    ]

    def say(seed: int, number: int, people=crowd, asked=rows):
        this = Round(tmp_path, None, loop.PROMPTS, None, seed, number)
        this.here.mkdir(parents=True, exist_ok=True)
        write_rows(asked, this.here / "completions.jsonl")
        found = simulated_labels(this, people, 2)
        return {(j["prompt"], j["annotator"]): j["ranks"] for j in found}

    first = say(0, 1)
    assert len(first) == 80 and say(0, 1) == first
    assert say(0, 2) != first != say(1, 1)
    # Another person beside them is shared items with, and changes no one's noise.
    exact = [crowd[0]._replace(temperature=1e-6), *crowd[1:]]
    changed = say(0, 1, exact)
    own = [key for key in first if key[1] == 0]
    assert {k: v for k, v in changed.items() if k[1]} == {
        k: v for k, v in first.items() if k[1]
    }
    assert all(changed[key] == [2, 1, 0] for key in own)


def test_prompts_are_fresh_each_round():
    texts = [f"p{n % 10}" for n in range(20)]  # ten, each twice
    rounds = [fresh_prompts(texts, 3, seed=0, number=n) for n in (1, 2, 3)]
    assert len({text for some in rounds for text in some}) == 9
    assert fresh_prompts(texts, 3, seed=1, number=1) != rounds[0]
    message = r"round 4: 4 · prompts = 12 are more than the 10 different prompts"
    with pytest.raises(UserError, match=message):
        fresh_prompts(texts, 3, seed=0, number=4)


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "deep/rows.jsonl"

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_once(path, fail)
    assert not path.exists()
    write_once(path, lambda n: [{"n": n}], 1)
    write_once(path, fail)
    assert path.read_text() == '{"n": 1}\n'
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def ranked(who: int, ranks: list[int], line: int) -> Row:
    values = {"prompt": "p", "completions": ["a", "b"], "ranks": ranks}
    return Row(values | {"annotator": who}, "labels.jsonl", line)


def test_one_annotator_s_pairs_are_as_they_are_and_several_agree():
    alone = agreed_pairs([ranked(0, [0, 1], 1), ranked(0, [1, 0], 2)])  # asked again
    assert alone == [Preference("p", "a", "b", annotator=0)]
    crowd = [ranked(who, [0, 1] if who < 3 else [1, 0], who) for who in range(4)]
    first, second = agreed_pairs(crowd)
    assert (first.chosen, second.chosen) == ("a", "b")
    assert first.weight + second.weight == pytest.approx(1) and first.weight > 0.6


def test_what_is_measured_by_hand(monkeypatch):
    scores = {text: float(n) for n, text in enumerate("abcdefghijk")}  # k is 10
    monkeypatch.setattr(
        loop_report, "score", lambda path, asked: {a: scores[a[1]] for a in asked}
    )
    pair = lambda chosen, rejected, weight=1.0: Preference(
        "p", chosen, rejected, weight=weight
    )
    learned = [pair("b", "a"), pair("d", "c"), pair("f", "e")]  # nine in ten: below 4.5
    fresh = [pair("k", "j", 0.75), pair("j", "k", 0.25), pair("a", "k"), pair("f", "g")]
    found = measure(Path("reward"), fresh, [pair("k", "a"), pair("a", "b")], learned)
    # Weights 0.75 right, 0.25 + 1 + 1 wrong.
    assert found["labels"] == pytest.approx(0.25)
    assert found["truth"] == 0.5
    # Of three pairs, (k, j) alone has no text that was learned from; it and (f, g)
    # score more than 4.5.
    assert found["unseen"] == pytest.approx(1 / 3)
    assert found["high"] == pytest.approx(2 / 3)
    assert measure(Path("reward"), fresh, [], learned)["truth"] is None
    assert accuracy([pair("a", "b")], {("p", "a"): 1.0, ("p", "b"): 1.0}) == 0.5


def test_the_table(tmp_path, capsys):
    def result(seed: int, number: int, gold: float) -> dict:
        said: Any = {"labels": 0.6, "truth": 0.7, "unseen": 1.0, "high": 0.25}
        after = {"gold": gold, "reward": 1.5, "kl": 4.0, "distinct": 1.0}
        ppo = {f"after/{k}": v for k, v in after.items()}
        ppo |= {f"before/{k}": 0.0 for k in after}
        stale = {"stale": said | {"truth": gold}} if number > 1 else {}
        return {"seed": seed, "round": number, "labels": 90 * number, "fresh": said} | (
            {"ppo": ppo} | stale
        )

    results = [result(s, n, 0.3 * n + 0.2 * s) for s in (0, 1) for n in (1, 2)]
    show(results, tmp_path / "table.md")
    head, _, start, first, second = (tmp_path / "table.md").read_text().splitlines()
    assert head.count("|") == second.count("|") == 11
    assert start == "| SFT | 0 | – | – | – | – | 0.00 | 0.00 ± 0.00 | 0.0 | 0.00 |"
    assert first.startswith("| 1 | 90 | – | – | – → 0.600 | – → 0.700 | 1.50 | 0.40 ± ")
    assert second == (
        "| 2 | 180 | 100% | 25% | 0.600 → 0.600 | 0.700 → 0.700 | 1.50 | 0.70 ± 0.14 | "
        "4.0 | 1.00 |"
    )
    # Seeds of different numbers of rounds, and a truth that nobody knows.
    for row in (results := results[:3]):
        row["ppo"] = {k: v for k, v in row["ppo"].items() if "gold" not in k}
        row["fresh"]["truth"] = None
    report(results, tmp_path)
    assert (tmp_path / "loop.png").stat().st_size > 1000
    assert (tmp_path / "table.md").read_text().splitlines()[3].split("|")[8] == " – "
    report([], tmp_path / "nowhere")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rounds": 0}, "rounds = 0: expected 1 or more"),
        ({"held_out": 1.0}, "held_out = 1.0: expected a share between 0 and 1"),
        ({"votes": 9}, "votes = 9: expected at most 8"),
        ({"annotators": ("ann",), "votes": 2}, "votes = 2: expected at most 1"),
        ({"annotators": ("ann",)}, r"seeds = \(0, 1, 2\): expected one with people"),
        ({"gold": None}, "gold = None: expected what simulated people see"),
        ({"sampling": SamplingConfig(8)}, "sampling = .*: expected 2 or more compl"),
    ],
)
def test_options_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        loop.Config(**changes)
