"""Tokenizers whose padding is the end token, or that lack padding or a beginning."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.data import (
    Demonstration,
    save_tokenizer,
    tokenize_demonstrations,
    train_tokenizer,
)
from rlhf_jax.data.batching import collate_demonstrations
from rlhf_jax.models import CausalLM, TransformerConfig, init_params
from rlhf_jax.models.hf import save_pretrained
from rlhf_jax.stages import load_policy, pad_id

pytestmark = pytest.mark.fault(19)

TEXTS = [Demonstration("ab", " c"), Demonstration("", "abcd"), Demonstration("b", "a")]
MODEL = TransformerConfig(
    vocab_size=259,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    d_ff=16,
    max_length=40,
)


def tokenizer_with(**special):
    tokenizer = train_tokenizer([], vocab_size=259)  # bytes
    for name, token in special.items():
        setattr(tokenizer, name, token)
    return tokenizer


@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
@pytest.mark.parametrize("bos", ["<bos>", None])
def test_masks_are_those_of_the_lengths(pad, bos):
    tokenizer = tokenizer_with(pad_token=pad, bos_token=bos)
    rows, _ = tokenize_demonstrations(TEXTS, tokenizer, max_length=12)
    batch = collate_demonstrations(rows, length=12, pad_id=pad_id(tokenizer))
    begin = bos is not None
    for index, text in enumerate(TEXTS):
        # Counted by hand: one token a byte, <bos> if there is one, and <eos>.
        before = begin + len(text.prompt)
        end = before + len(text.completion) + 1
        expected = [max(before, 1) <= column < end for column in range(12)]
        assert batch.mask[index].tolist() == expected
        assert batch.segment_ids[index].tolist() == [int(c < end) for c in range(12)]
        assert batch.tokens[index, end - 1] == tokenizer.eos_token_id
    assert pad_id(tokenizer) == (0 if pad == "<pad>" else 2)
    assert np.asarray(batch.mask).sum() > 0


def exported(folder: Path, eos: list[int], pad: int | None) -> Path:
    params = init_params(CausalLM(MODEL), key=jax.random.key(0))
    save_pretrained(folder / "first", params, MODEL)
    raw = json.loads((folder / "first" / "config.json").read_text())
    raw |= {"eos_token_id": eos, "pad_token_id": pad}
    save_pretrained(folder / "second", params, MODEL, hf_config=raw)
    tokenizer = tokenizer_with(pad_token="<eos>" if pad == 2 else "<pad>")
    save_tokenizer(tokenizer, folder / "second")
    return folder / "second"


@pytest.mark.parametrize(
    "eos, pad, stops, kept",
    [
        ([2, 7, 9], 0, (2, 7, 9), [2, 7, 9]),
        ([7, 2], 2, (2, 7), [7]),
        ([2], 2, (2,), [2]),
    ],
)
def test_all_end_tokens_stop_and_none_is_padding(eos, pad, stops, kept, tmp_path):
    folder = exported(tmp_path, eos, pad)
    written = json.loads((folder / "generation_config.json").read_text())
    ends = written["eos_token_id"]
    assert (ends if isinstance(ends, list) else [ends]) == kept
    assert written.get("pad_token_id") not in kept
    policy = load_policy(folder)
    assert policy.stop_ids == stops
    assert pad_id(policy.tokenizer) == pad
