"""Every row of a script's data is used or put aside, with the reason; none is lost."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments import policy, reward_model, sft
from experiments.aside import QUARANTINE, put_aside
from experiments.inputs import DEMONSTRATIONS, DataConfig, prompt_parsers
from experiments.judgements import JUDGEMENTS, PAIRS, read_judgements
from experiments.reading import read_data, tokenize_data
from rlhf_jax.data import read_rows
from rlhf_jax.errors import UserError

GOOD = [{"text": f"a film number {n}"} for n in range(40)]
LONG = " ".join(map(str, range(99)))  # more tokens than the toys' context of 128
PAIR = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}


def jsonl(path: Path, *rows: Any) -> DataConfig:
    """A file of these rows to learn from and to evaluate on; half may be faulty."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return DataConfig(str(path), max_faulty=0.5, eval_fraction=0.1)


def aside(run_dir: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(run_dir / QUARANTINE)]


def lines_of(found: list[dict[str, Any]]) -> list[int]:
    return [int(row["origin"].rpartition(":")[2]) for row in found]


@pytest.mark.fault(22)
def test_a_run_is_what_it_is_without_the_faulty_rows(toys, tmp_path, capsys):
    clean = jsonl(tmp_path / "clean.jsonl", *GOOD)
    clean = dataclasses.replace(clean, eval_path=clean.path)
    faults = ['{"text": "cut of', {"text": 3}, {"text": LONG}]
    rows = [faults[0], *GOOD[:20], *faults[1:], *GOOD[20:]]
    dirty = jsonl(tmp_path / "dirty.jsonl", *rows)
    dirty = dataclasses.replace(dirty, eval_path=clean.path, max_faulty=0.07)

    sft.main(toys.sft(tmp_path / "a", data=clean))
    assert "put aside" not in capsys.readouterr().out
    assert not (tmp_path / "a" / QUARANTINE).exists()
    sft.main(toys.sft(tmp_path / "b", data=dirty))
    said = [x for x in capsys.readouterr().out.splitlines() if "put aside" in x]
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in "ab"]
    # A tokenizer is trained on what is parsed: the long row is in it, so not the bytes.
    assert len(metrics[0].splitlines()) == len(metrics[1].splitlines()) == 5

    found = aside(tmp_path / "b")
    assert lines_of(found) == [1, 22, 23]
    assert [row["raw"] for row in found] == [faults[0], *map(json.dumps, faults[1:])]
    reasons = ["not JSON (Unterminated string", "column 'text': expected text"]
    for row, reason in zip(found, [*reasons, "the completion alone has"], strict=True):
        assert row["reason"].startswith(reason)
    assert len(said) == 2 and said[0] == said[1]  # when it begins and when it ends
    assert "quarantine.jsonl: 3 rows put aside: 1 × not JSON" in said[0]
    assert "; 1 × column 'text': expected text that is not empty; 1 × the" in said[0]


@pytest.mark.fault(22)
def test_the_same_bytes_where_the_tokenizer_is_given(toys, tmp_path):
    """Steps, order and evaluation are those of a file without the faulty rows."""
    clean = jsonl(tmp_path / "clean.jsonl", *GOOD)
    rows = [*GOOD[:20], {"text": LONG}, {"txt": ""}, *GOOD[20:]]
    dirty = jsonl(tmp_path / "dirty.jsonl", *rows)
    for name, data in (("a", clean), ("b", dirty)):
        data = dataclasses.replace(data, eval_path=clean.path)
        sft.main(toys.sft(tmp_path / name, data=data, policy=toys.root / "sft"))
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in "ab"]
    assert metrics[0] == metrics[1]
    assert lines_of(aside(tmp_path / "b")) == [21, 22]


@pytest.mark.fault(22)
def test_more_than_the_share_stops_the_run(toys, tmp_path):
    data = jsonl(tmp_path / "rows.jsonl", *GOOD[:18], {"text": ""}, "{", {"txt": "a"})
    where: Any = {"run_dir": tmp_path, "seed": 0}
    for allowed in (0.1, 0.0):
        config = dataclasses.replace(data, max_faulty=allowed)
        with pytest.raises(UserError) as stopped:
            read_data(config, DEMONSTRATIONS, **where)
        message = str(stopped.value)
        assert "\n" not in message
        for part in (
            f"{data.path}: 3 of 21 rows cannot be used, more than data.max_faulty = ",
            f"= {allowed:g} of them",
            f"all are in {tmp_path}/quarantine.jsonl",
            "rows.jsonl:20: not JSON",
            "rows.jsonl:19: column 'text'",
        ):
            assert part in message
        assert sorted(lines_of(aside(tmp_path))) == [19, 20, 21]
    config = dataclasses.replace(data, max_faulty=0.15)
    read = read_data(config, DEMONSTRATIONS, **where)
    assert len(read.learned) + len(read.held_out) == 18


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_one(share):
    with pytest.raises(UserError, match=f"data.max_faulty = {share}: expected a share"):
        DataConfig("rows.jsonl", max_faulty=share)


@pytest.mark.fault(21)
@pytest.mark.parametrize("kind", ["chosen", "rejected", "prompt"])
def test_a_pair_goes_as_a_whole_whichever_side_is_too_long(toys, tmp_path, kind):
    rows = [PAIR | {"prompt": f"{n} ="} for n in range(20)]
    data = jsonl(tmp_path / "pairs.jsonl", *rows, PAIR | {kind: LONG})
    config = toys.reward(tmp_path, data=data)
    found = read_judgements(config, JUDGEMENTS["pairwise"]).data
    assert len(found.learned.examples) + len(found.held_out.examples) == 20
    [row] = aside(tmp_path)
    assert lines_of([row]) == [21]
    kept = dataclasses.replace(data, too_long="keep_end")
    config = toys.reward(tmp_path, data=kept)
    found = read_judgements(config, JUDGEMENTS["pairwise"]).data
    pairs = [*found.learned.examples, *found.held_out.examples]
    if kind == "prompt":  # cut once for both sides, and counted
        assert len(pairs) == 21 and found.learned.num_cut + found.held_out.num_cut == 1
        assert not (tmp_path / QUARANTINE).exists()
    else:  # completions are never cut
        assert len(pairs) == 20 and lines_of(aside(tmp_path)) == [21]


@pytest.mark.fault(21)
def test_all_pairs_of_a_ranking_go_together(toys, tmp_path):
    """Also those that lie among the held-out ones."""
    ranks = {"ranks": [0, 1, 2, 3]}
    rows = [
        {"prompt": f"{n} =", "completions": ["a", "b", "c", "d"]} | ranks
        for n in range(10)
    ]
    rows[4]["completions"] = ["a", "b", "c", LONG]
    data = jsonl(tmp_path / "rankings.jsonl", *rows)
    config = toys.reward(tmp_path, data=dataclasses.replace(data, eval_fraction=0.5))
    found = read_judgements(config, JUDGEMENTS["pairwise"]).data
    used = [e.origin for e in (*found.learned.examples, *found.held_out.examples)]
    lines = sorted(int(origin.rpartition(":")[2]) for origin in used)
    assert lines == sorted([*range(1, 5), *range(6, 11)] * 6)
    assert lines_of(aside(tmp_path)) == [5]


@pytest.mark.fault(21)
def test_sides_that_differ_in_nothing_that_is_learned(toys, tmp_path):
    """A tokenizer that knows no capitals makes two answers one."""
    from tokenizers import normalizers

    from rlhf_jax.data import load_tokenizer

    tokenizer = load_tokenizer(toys.root / "sft" / "tokenizer")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    rows = [PAIR, PAIR | {"chosen": " Yes", "rejected": " yes"}, PAIR]
    data = jsonl(tmp_path / "pairs.jsonl", *rows)
    texts = read_data(data, PAIRS, run_dir=tmp_path, seed=0)
    tokenize = lambda pairs: JUDGEMENTS["pairwise"].tokenize(
        pairs, tokenizer, max_length=64
    )[0]
    learned, held_out = tokenize_data(data, texts, tokenize)
    [row] = aside(tmp_path)
    assert len(learned) + len(held_out) == 2 and lines_of([row]) == [2]
    assert "the same tokens" in row["reason"] and json.loads(row["raw"]) == rows[1]


@pytest.mark.fault(23)
def test_the_kind_of_most_rows_is_read_and_the_others_put_aside(tmp_path):
    ask = [{"role": "user", "content": "2 + 2?"}]
    four, five = ([{"role": "assistant", "content": x}] for x in "45")
    chat = {"prompt": ask, "chosen": four, "rejected": five}
    data = jsonl(tmp_path / "pairs.jsonl", chat, PAIR, PAIR, PAIR)
    read = read_data(data, PAIRS, run_dir=tmp_path, seed=0)
    assert {pair.prompt for pair in read.learned + read.held_out} == {"2 + 2 ="}
    assert lines_of(aside(tmp_path)) == [1]
    data = jsonl(tmp_path / "pairs.jsonl", PAIR, chat, chat, chat)
    read = read_data(data, PAIRS, run_dir=tmp_path, seed=0)
    assert [pair.prompt for pair in read.learned + read.held_out] == [tuple(ask)] * 3
    [row] = aside(tmp_path)
    assert lines_of([row]) == [1] and "expected lists of messages" in row["reason"]


@pytest.mark.fault(22)
def test_a_corrected_file_clears_its_rows_and_no_others(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", *GOOD[:9], "{")
    other = jsonl(tmp_path / "b.jsonl", "{", *GOOD[:9])
    for data in (first, other):
        read_data(data, DEMONSTRATIONS, run_dir=tmp_path, seed=0)
    assert len(aside(tmp_path)) == 2
    for data, left in ((first, 1), (other, 0)):
        jsonl(Path(data.path), *GOOD[:10])
        read = read_data(data, DEMONSTRATIONS, run_dir=tmp_path, seed=0)
        assert not read.reading.faults
        assert (tmp_path / QUARANTINE).exists() == bool(left)
    put_aside(read.reading)  # again: nothing to do


@pytest.mark.fault(21)
def test_a_prompt_that_is_too_long(toys, tmp_path, capsys):
    prompts = [{"prompt": f"the film {n}"} for n in range(20)]
    data = jsonl(tmp_path / "prompts.jsonl", *prompts, {"prompt": LONG})
    policy.main(toys.policy(tmp_path / "run", data=data))
    [row] = aside(tmp_path / "run")
    assert re.search(r"\d+ tokens are more than max_prompt_length=64", row["reason"])
    said = [x for x in capsys.readouterr().out.splitlines() if "put aside" in x]
    assert len(said) == 2
    assert "1 row put aside: 1 × … tokens are more than max_prompt_length=64" in said[0]


@pytest.mark.fault(24)
def test_an_error_of_all_rows_is_said_once_and_puts_nothing_aside(toys, tmp_path):
    """A tokenizer without a template is no fault of a row."""
    ask = [{"role": "user", "content": "2 + 2?"}]
    data = jsonl(tmp_path / "prompts.jsonl", *[{"prompt": ask}] * 9)
    with pytest.raises(UserError, match="^the tokenizer has no chat template"):
        policy.main(toys.policy(tmp_path / "run", data=data))
    assert not (tmp_path / "run" / QUARANTINE).exists()


def test_too_few_rows_to_hold_any_back(tmp_path):
    data = jsonl(tmp_path / "rows.jsonl", GOOD[0])
    with pytest.raises(UserError, match="0 examples to learn from and 1 to evaluate"):
        read_data(data, prompt_parsers(2), run_dir=tmp_path, seed=0)


@pytest.mark.fault(22)
def test_the_objects_of_one_line_are_told_apart(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*GOOD[:3], {"text": 3}, *GOOD[3:6]]))
    data = DataConfig(str(path), max_faulty=0.5)
    read = read_data(data, DEMONSTRATIONS, run_dir=tmp_path, seed=0)
    assert len(read.learned) + len(read.held_out) == 6
    assert [row["origin"] for row in aside(tmp_path)] == [f"{path}:1, object 4"]


@pytest.mark.fault(22)
def test_reward_models_say_it_too(toys, tmp_path, capsys):
    rows = [PAIR | {"prompt": f"{n} ="} for n in range(30)]
    data = jsonl(tmp_path / "pairs.jsonl", *rows, PAIR | {"margin": "much"})
    config = toys.reward(tmp_path / "run", data=data)
    reward_model.main(config)
    said = [x for x in capsys.readouterr().out.splitlines() if "put aside" in x]
    assert len(said) == 2
    assert "1 row put aside: 1 × column 'margin': expected a finite number" in said[0]
