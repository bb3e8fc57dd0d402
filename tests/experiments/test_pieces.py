"""Texts of tokens joined are the response; their KL is that of the mask's tokens."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pieces import token_kl, token_texts
from rlhf_jax.data import train_tokenizer
from rlhf_jax.data.tokenizer import encode_texts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Of few merges, so that é, 語 and 😀 are several tokens each."""
    return train_tokenizer(["a good film . a bad film ."] * 9, vocab_size=270)


@pytest.mark.parametrize("text", ["a good film .", " é 語😀 film", "", "\n\n a"])
def test_joined_they_are_the_text(tokenizer, text):
    [ids] = encode_texts(tokenizer, [text])
    ids = [*ids, tokenizer.eos_token_id]
    found = token_texts(tokenizer, ids, tokenizer.decode(ids[:-1]))
    assert "".join(found) == text and len(found) == len(ids) and found[-1] == ""


def test_a_character_belongs_to_its_last_token(tokenizer):
    [ids] = encode_texts(tokenizer, ["語."])
    assert token_texts(tokenizer, list(ids), "語.") == ["", "", "語", "."]


def test_a_character_that_is_cut_off_is_not_lost(tokenizer):
    [ids] = encode_texts(tokenizer, ["a語"])
    cut = list(ids[:-1])
    text = tokenizer.decode(cut)
    assert text == "a\ufffd"
    assert token_texts(tokenizer, cut, text) == ["a", "", "\ufffd"]


def test_a_tokenizer_that_tidies_its_texts_up():
    """Joined they are what it says, not what was read."""
    tokenizer: Any = train_tokenizer(["a film . a film ."] * 9, vocab_size=270)
    tokenizer.clean_up_tokenization_spaces = True
    [ids] = encode_texts(tokenizer, ["a film ."])
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=True)
    found = token_texts(tokenizer, list(ids), text)
    assert "".join(found) == text and len(found) == len(ids)


def test_kl_of_tokens_by_hand():
    """The second row has a hole, as where a tool has spoken; under it anything is."""
    mask = jnp.array([[False, True, True, False], [False, True, False, True]])
    logprobs = jnp.array([[0.0, -1.0, -2.0, 0.0], [0.0, -0.5, jnp.nan, -3.0]])
    ref = jnp.array([[0.0, -1.5, -1.75, 7.0], [0.0, -0.5, 1.0, -0.125]])
    found = token_kl(logprobs, ref, mask)
    assert found == [[0.5, -0.25], [0.0, -2.875]] and not np.signbit(found[1][0])
