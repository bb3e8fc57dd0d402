"""Preferences of messages and transcripts reach training through the chat template."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import preference, reward_model, sft
from experiments.inputs import (
    DEMONSTRATIONS,
    DataConfig,
    tokenize_imitation,
)
from experiments.judgements import JUDGEMENTS, read_judgements
from experiments.reading import read_data
from rlhf_jax.data import Row, load_tokenizer, read_transcripts, save_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.steps import UnpairedConfig

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SYSTEM = {"role": "system", "content": "be brief ."}
FIRST = "\n\nHuman: is it good ?\n\nAssistant: the plot was fine ."


def dialogues(count: int) -> list[dict[str, str]]:
    """Transcripts of two rounds; the longer ones have an odd number."""
    asked = [f"{FIRST}\n\nHuman: and {n} ?\n\nAssistant:" for n in range(count)]
    good, bad = " i loved it .", " i hated the slow camera ."
    return [{"chosen": text + good, "rejected": text + bad} for text in asked]


def messages(count: int) -> list[dict[str, Any]]:
    """The same as messages after a system's turn."""
    rows = read_transcripts(Row(d, "x", n) for n, d in enumerate(dialogues(count)))
    return [{k: [SYSTEM, *turns] for k, turns in row.values.items()} for row in rows]


def written(path: Path, rows: list[dict[str, Any]]) -> DataConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(str(path), eval_fraction=0.25)


@pytest.fixture(scope="module")
def chat_policy(toys, tmp_path_factory) -> Path:
    """A toy policy whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "sft"
    sft.main(toys.sft(folder))
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    save_tokenizer(tokenizer, folder / "tokenizer")
    return folder


def test_what_the_losses_are_given(toys, chat_policy, tmp_path):
    """Masks own the last answer with its end; the rows are as transformers has them."""
    data = written(tmp_path / "pairs.jsonl", messages(8))
    config = toys.reward(tmp_path / "run", data=data, policy=chat_policy)
    _, tokenizer, _, found = read_judgements(config, JUDGEMENTS["pairwise"])
    seen = set()
    for batch in found.held_out_batches(2):
        for side, end in (("chosen", "loved it ."), ("rejected", "slow camera .")):
            tokens = getattr(batch, side)
            for row, mask in zip(tokens.tokens, tokens.mask, strict=True):
                owned = str(tokenizer.decode(row[np.asarray(mask)]))
                assert owned.endswith(f"{end}<eos>") and owned.startswith("i ")
                last = int(np.flatnonzero(mask)[-1])
                text = str(tokenizer.decode(row[: last + 1]))
                seen.add(text)
    whole: Any = tokenizer
    expected = {
        whole.apply_chat_template(row[side], tokenize=False).rstrip()
        for row in messages(8)
        for side in ("chosen", "rejected")
    }
    assert len(seen) == 4 and seen <= expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairwise", "binary"])
def test_a_reward_model_and_dpo_or_kto(toys, chat_policy, tmp_path, kind):
    rows, unpaired = messages(32), kind == "binary"
    if unpaired:
        rows = [
            {"prompt": turns[:-1], "completion": turns[-1:], "label": label}
            for row in rows
            for turns, label in ((row["chosen"], 1), (row["rejected"], 0))
        ]
    given: Any = {"data": written(tmp_path / "rows.jsonl", rows), "policy": chat_policy}
    optim = dataclasses.replace(
        toys.reward(tmp_path).optim, learning_rate=3e-2, warmup=0
    )
    config = toys.reward(tmp_path / "reward", kind=kind, epochs=4, optim=optim, **given)
    found = reward_model.main(config)
    assert found["reward/eval_accuracy"] > 0.9
    if unpaired:
        given["preference"] = UnpairedConfig("kto")
    preference.main(toys.preference(tmp_path / "policy", **given))


def test_transcripts_as_messages(toys, chat_policy, tmp_path):
    """The same tokens as of rows that were messages from the beginning."""
    plain = [{k: turns[1:] for k, turns in row.items()} for row in messages(8)]
    told = written(tmp_path / "told.jsonl", plain)
    read = dataclasses.replace(
        written(tmp_path / "read.jsonl", dialogues(8)), transcripts=True
    )
    found = []
    for number, data in enumerate((told, read)):
        config = toys.reward(tmp_path / str(number), data=data, policy=chat_policy)
        found.append(read_judgements(config, JUDGEMENTS["pairwise"]).data)
    assert found[0].learned.examples == found[1].learned.examples

    # SFT learns all answers of the chosen ones.
    chosen = dataclasses.replace(read, columns={"chosen": "text"})
    learned = read_data(chosen, DEMONSTRATIONS, run_dir=tmp_path, seed=0).learned
    tokenizer = load_tokenizer(chat_policy / "tokenizer")
    imitated = tokenize_imitation(learned, tokenizer, max_length=128, too_long="error")
    chat = imitated.examples[0]
    owned = [t for t, mine in zip(chat.ids, chat.mask, strict=True) if mine]
    assert str(tokenizer.decode(owned)) == "the plot was fine .<eos>i loved it .<eos>"


@pytest.mark.fault(24)
def test_no_template_and_no_policy(toys, tmp_path):
    data = written(tmp_path / "pairs.jsonl", messages(8))
    message = r"pairs.jsonl:\d: messages need a tokenizer with a chat template: give"
    with pytest.raises(UserError, match=message):
        reward_model.main(toys.reward(tmp_path / "a", data=data, policy=None))
    message = "the tokenizer has no chat template.*; set its chat_template"
    with pytest.raises(UserError, match=message):
        preference.main(toys.preference(tmp_path / "b", data=data))
