"""Byte-level BPE tokenizers: trained here, or loaded from a local folder.

A row of tokens is ``<bos> prompt completion <eos>``: with a <bos> in column 0 every
token of a text without a prompt is predicted.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.records import TokenIds
from rlhf_jax.data.row import DataError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"  # ids 0, 1, 2
SMALLEST_VOCAB = 3 + 256  # the special tokens and every byte


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on texts; the same texts give the same one.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section
    2.2 (no arXiv number). Every byte is in the vocabulary, so that any text goes to
    tokens and back unchanged.

    Args:
      texts: what to train on.
      vocab_size: number of tokens wanted, at least 259; the tokenizer has fewer where
        the texts do not have so many pairs to merge.

    Returns:
      A tokenizer with ``<pad>`` = 0, ``<bos>`` = 1 and ``<eos>`` = 2, which adds none
      of them by itself: ``tokenize_prompts`` and its kin decide where they stand.

    Raises:
      ValueError: vocab_size is too small to hold every byte.

    >>> tokenizer = train_tokenizer(["a good film .", "a bad film ."], vocab_size=280)
    >>> [ids] = encode_texts(tokenizer, ["a film — good !"])
    >>> tokenizer.decode(ids)
    'a film — good !'
    >>> tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    (0, 1, 2)
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(
            f"vocab_size is {vocab_size}; expected at least {SMALLEST_VOCAB}: 256 "
            f"bytes and 3 special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,  # it rewrites " ." to "."
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes a tokenizer where ``load_tokenizer``, and transformers, find it.

    No reference.

    Args:
      tokenizer: any fast tokenizer of transformers.
      folder: made if it does not exist; files of a tokenizer in it are replaced.
    """
    tokenizer.save_pretrained(str(folder))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer from a local folder: no network, no code from the folder.

    No reference.

    Args:
      folder: holds ``tokenizer.json`` and ``tokenizer_config.json``, as
        ``save_tokenizer`` or transformers wrote them.

    Returns:
      The tokenizer.

    Raises:
      DataError: the folder has no tokenizer, or not one with an end token.

    >>> import tempfile
    >>> tokenizer = train_tokenizer(["a good film ."], vocab_size=270)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tokenizer(tokenizer, folder)
    ...     load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    True
    """
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not Path(folder, name).is_file():
            raise DataError(
                f"{folder}: no tokenizer here, {name} is missing; give the folder "
                f"that save_tokenizer wrote, or that of a Hugging Face model"
            )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True
        )
    except Exception as error:  # tokenizers raises bare Exception for a bad file
        raise DataError(
            f"{folder}: the tokenizer cannot be read ({error}); copy its files again"
        ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{folder}: the tokenizer has no end token; set eos_token in "
            f"tokenizer_config.json"
        )
    return tokenizer


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[TokenIds]:
    """The ids of texts and nothing else: no special token is added or recognised.

    No reference. A text that spells ``<eos>`` gets the tokens of its characters, so
    that data cannot end a response.

    Args:
      tokenizer: any fast tokenizer of transformers.
      texts: any texts.

    Returns:
      The token ids of each.

    >>> tokenizer = train_tokenizer(["a good film ."], vocab_size=270)
    >>> [ids] = encode_texts(tokenizer, ["a <eos> b"])
    >>> tokenizer.eos_token_id in ids, tokenizer.decode(ids)
    (False, 'a <eos> b')
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True
    )
    return [tuple(ids) for ids in encoded["input_ids"]]
