"""Tokenizers: any text round-trips, training is deterministic, folders are checked."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlhf_jax.data import (
    DataError,
    encode_texts,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from rlhf_jax.data.grammar import sample_review

RNG = random.Random(0)
TEXTS = [sample_review(RNG) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=400)


def test_sizes_and_special_tokens(tokenizer, byte_tokenizer):
    assert len(tokenizer) == 400
    assert len(byte_tokenizer) == 259
    ids = tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"])
    assert ids == [0, 1, 2]
    with pytest.raises(ValueError, match="vocab_size is 258; expected at least 259"):
        train_tokenizer(TEXTS, vocab_size=258)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_round_trips(tokenizer, text):
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


@pytest.mark.parametrize(
    "text",
    ["", " ", "<eos>", "a<pad> <bos>b", " a , b .", "\r\n\t", "é\u0301\x00🎬", "I 'm"],
)
def test_awkward_texts_round_trip(tokenizer, text):
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_prompt_and_completion_put_together(tokenizer):
    """Where a completion begins with its space, they make the tokens of the whole."""
    for text in TEXTS[:50]:
        whole, prompt, completion = encode_texts(
            tokenizer, ["so i thought" + text, "so i thought", text]
        )
        assert prompt + completion == whole


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer(TEXTS, vocab_size=400)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert encode_texts(again, TEXTS) == encode_texts(tokenizer, TEXTS)
    other = train_tokenizer(TEXTS[::-1][:100], vocab_size=400)
    assert other.get_vocab() != tokenizer.get_vocab()


def test_saved_and_loaded(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    texts = [*TEXTS, "<eos> é ."]
    for loaded in (
        load_tokenizer(tmp_path / "new" / "folder"),
        AutoTokenizer.from_pretrained(tmp_path / "new" / "folder"),
    ):
        assert encode_texts(loaded, texts) == encode_texts(tokenizer, texts)
        assert loaded.decode(list(encode_texts(loaded, ["a , b ."])[0])) == "a , b ."
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (
            0,
            1,
            2,
        )


def test_folder_without_a_tokenizer(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no tokenizer here, tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer_config\.json is missing; give the"):
        load_tokenizer(tmp_path)


def test_damaged_tokenizer(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match="the tokenizer cannot be read .*copy its files"
    ):
        load_tokenizer(tmp_path)


def test_tokenizer_without_an_end(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="has no end token; set eos_token"):
        load_tokenizer(tmp_path)


@pytest.mark.fault(26)
def test_code_in_the_folder_does_not_run(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    path.write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('the code ran')")
    assert encode_texts(load_tokenizer(tmp_path), ["a"]) == encode_texts(
        tokenizer, ["a"]
    )
