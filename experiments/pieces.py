"""A response as the texts of its tokens, and what each of them costs in KL."""

import os
from typing import Any

import jax
import numpy as np
from tokenizers.decoders import DecodeStream

from rlhf_jax.types import Array


def token_texts(tokenizer: Any, ids: list[int], text: str) -> list[str]:
    """The part of a response that each of its tokens is; joined they are the whole.

    A special token is no text; of several tokens that spell one character, the last has
    it.

    Args:
      tokenizer: any fast tokenizer of transformers.
      ids: the response's tokens.
      text: the response, as the tokenizer decodes it, without special tokens.
    """
    stream = DecodeStream(skip_special_tokens=True)
    found = [stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids]
    joined = "".join(found)
    if ids and text.startswith(joined):  # a character that is not whole is left over
        return [*found[:-1], found[-1] + text[len(joined) :]]
    # Some tokenizers tidy the whole text up: as far as each beginning agrees with it.
    ends = [0]
    for i in range(1, len(ids) + 1):
        begun = tokenizer.decode(ids[:i], skip_special_tokens=True)
        ends.append(max(ends[-1], len(os.path.commonprefix([begun, text]))))
    ends[-1] = len(text)
    return [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def token_kl(logprobs: Array, ref_logprobs: Array, mask: Array) -> list[list[float]]:
    """log π − log π_ref of each token of the responses, nats, to five decimals.

    They add up to ``objective/kl``.

    Args:
      logprobs: [B, T] float32 nats, of the policy.
      ref_logprobs: [B, T] float32 nats, of the reference at the same temperature.
      mask: [B, T] bool, the tokens of the responses.
    """
    own, ref, masks = jax.device_get((logprobs, ref_logprobs, mask))
    rows = zip(own.astype(np.float64) - ref, masks, strict=True)
    return [(row[mask].round(5) + 0.0).tolist() for row, mask in rows]  # no -0.0
