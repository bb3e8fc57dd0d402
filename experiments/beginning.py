"""What a stage that learns from texts begins with: a policy, a tokenizer, the data."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerFast

from experiments.inputs import Data, Examples, make_data
from experiments.reading import DataConfig, Parsers, read_data, tokenize_data
from rlhf_jax.data import train_tokenizer
from rlhf_jax.models import TransformerConfig
from rlhf_jax.stages import PretrainedConfig, Stage, load_policy, pad_id


class Learning(Protocol):
    """The options of such a stage; the scripts say what they mean."""

    @property
    def run_dir(self) -> Path: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def policy(self) -> Path | None: ...
    @property
    def pretrained(self) -> PretrainedConfig: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def pack_length(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


class Beginning(NamedTuple):
    """All that is known before anything is compiled."""

    policy: Stage | None
    tokenizer: PreTrainedTokenizerFast
    model: TransformerConfig
    data: Data


def read(
    config: Learning,
    parsers: Parsers,
    tokenize: Callable[..., Examples],
    *,
    model: TransformerConfig | None,
    spell: Callable[[list[Any]], Iterable[str]],
) -> Beginning:
    """Reads the data, loads the policy, tokenizes the data.

    Args:
      config: from where, and how long.
      parsers: make examples of text from rows.
      tokenize: makes `Examples` of them.
      model: the network, where no policy is named.
      spell: the texts of examples, which a tokenizer is trained on then.
    """
    texts = read_data(config.data, parsers, run_dir=config.run_dir, seed=config.seed)
    if config.policy is None:
        assert model is not None
        policy = None
        tokenizer = train_tokenizer(spell(texts.learned), model.vocab_size)
        model = dataclasses.replace(model, vocab_size=len(tokenizer))
    else:
        policy = load_policy(config.policy, config.pretrained)
        tokenizer, model = policy.tokenizer, policy.model
    most = min(config.max_length or model.max_length, model.max_length)
    tokens = functools.partial(
        tokenize,
        tokenizer=tokenizer,
        max_length=most,
        too_long=config.data.too_long,
    )
    learned, held_out = tokenize_data(config.data, texts, tokens)
    data = make_data(
        learned,
        held_out,
        pack_length=config.pack_length,
        context=model.max_length,
        pad_id=pad_id(tokenizer),
    )
    return Beginning(policy, tokenizer, model, data)
