"""Records of text to records of token ids: all of a data set at once, up front.

So what is too long is found before anything is compiled. A row of tokens is
``<bos> prompt completion <eos>``; a tokenizer without a <bos> leaves it out, and the
first token of a completion without a prompt is then not predicted.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.records import (
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
    TokenIds,
)
from rlhf_jax.data.row import DataError
from rlhf_jax.data.tokenizer import encode_texts

TooLong = Literal["error", "keep_end"]
"""What becomes of a row over the limit: ``"error"`` stops there, ``"keep_end"`` keeps
<bos> and the end of the prompt. Completions are never cut."""


def tokenize_prompts(
    examples: Sequence[Prompt[str]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_prompt_length: int,
    too_long: TooLong = "error",
) -> tuple[list[Prompt[TokenIds]], int]:
    """Prompts as token ids: ``<bos> prompt``. No reference.

    Args:
      examples: prompts of text.
      tokenizer: any fast tokenizer of transformers.
      max_prompt_length: most tokens of a prompt, <bos> included.
      too_long: ``"error"`` or ``"keep_end"``.

    Returns:
      (prompts in their order, how many of them were cut).

    Raises:
      DataError: a prompt has no token, or too many while too_long is ``"error"``.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["a b c"], vocab_size=259)  # bytes
    >>> [prompt], num_cut = tokenize_prompts(
    ...     [Prompt("a b c")], tokenizer, max_prompt_length=4, too_long="keep_end")
    >>> tokenizer.decode(prompt.prompt), num_cut
    ('<bos>b c', 1)
    """
    if max_prompt_length < 2:
        raise ValueError(f"max_prompt_length is {max_prompt_length}; expected ≥ 2")
    texts = encode_texts(tokenizer, [example.prompt for example in examples])
    begin = _begin(tokenizer)
    tokenized, num_cut = [], 0
    for index, (example, ids) in enumerate(zip(examples, texts, strict=True)):
        name = _name(example, index)
        if not begin + ids:
            raise DataError(
                f"{name}: the prompt has no token, and the tokenizer no <bos> to "
                f"begin with; give a prompt that is not empty"
            )
        limit = ("max_prompt_length", max_prompt_length)
        prompt, cut = _fit(begin, ids, max_prompt_length, too_long, name, limit)
        tokenized.append(Prompt(prompt, example.origin, example.columns))
        num_cut += cut
    return tokenized, num_cut


def tokenize_demonstrations(
    examples: Sequence[Demonstration[str]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    too_long: TooLong = "error",
) -> tuple[list[Demonstration[TokenIds]], int]:
    """Demonstrations as token ids: ``<bos> prompt`` and ``completion <eos>``.

    No reference.

    Args:
      examples: demonstrations of text.
      tokenizer: any fast tokenizer of transformers that has an end token.
      max_length: most tokens of a row, <bos> and <eos> included.
      too_long: ``"error"`` or ``"keep_end"``.

    Returns:
      (demonstrations in their order, how many prompts were cut).

    Raises:
      DataError: a row is too long while too_long is ``"error"``, or its completion
        alone is. The message names row, length and limit.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["a b"], vocab_size=259)  # bytes
    >>> [row], _ = tokenize_demonstrations(
    ...     [Demonstration("a", " b")], tokenizer, max_length=8)
    >>> tokenizer.decode(row.prompt), tokenizer.decode(row.completion)
    ('<bos>a', ' b<eos>')
    """
    rows, num_cut = _tokenize(
        examples, [(e.completion,) for e in examples], tokenizer, max_length, too_long
    )
    return [
        Demonstration(prompt, completion, example.origin)
        for example, (prompt, (completion,)) in zip(examples, rows, strict=True)
    ], num_cut


def tokenize_labels(
    examples: Sequence[Labeled[str]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    too_long: TooLong = "error",
) -> tuple[list[Labeled[TokenIds]], int]:
    """Labelled completions as token ids, as ``tokenize_demonstrations`` does it.

    No reference.

    Args:
      examples: labelled completions of text.
      tokenizer: any fast tokenizer of transformers that has an end token.
      max_length: most tokens of a row, <bos> and <eos> included.
      too_long: ``"error"`` or ``"keep_end"``.

    Returns:
      (labelled completions in their order, how many prompts were cut).

    Raises:
      DataError: as ``tokenize_demonstrations``.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["a b"], vocab_size=259)  # bytes
    >>> [row], _ = tokenize_labels([Labeled("", "a b", 1)], tokenizer, max_length=8)
    >>> tokenizer.decode(row.prompt), tokenizer.decode(row.completion), row.label
    ('<bos>', 'a b<eos>', 1)
    """
    rows, num_cut = _tokenize(
        examples, [(e.completion,) for e in examples], tokenizer, max_length, too_long
    )
    return [
        Labeled(prompt, completion, example.label, example.origin)
        for example, (prompt, (completion,)) in zip(examples, rows, strict=True)
    ], num_cut


def tokenize_preferences(
    examples: Sequence[Preference[str]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    too_long: TooLong = "error",
) -> tuple[list[Preference[TokenIds]], int]:
    """Preferences as token ids; a prompt is cut once, for both of its sides.

    No reference.

    Args:
      examples: preferences of text.
      tokenizer: any fast tokenizer of transformers that has an end token.
      max_length: most tokens of prompt and longer side, <bos> and <eos> included.
      too_long: ``"error"`` or ``"keep_end"``.

    Returns:
      (preferences in their order, how many prompts were cut).

    Raises:
      DataError: as ``tokenize_demonstrations``, or both sides have the same tokens.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["a b"], vocab_size=259)  # bytes
    >>> [pair], num_cut = tokenize_preferences(
    ...     [Preference("a b", " cd", " e")], tokenizer, max_length=6,
    ...     too_long="keep_end")
    >>> [tokenizer.decode(x) for x in (pair.prompt, pair.chosen, pair.rejected)]
    ['<bos>b', ' cd<eos>', ' e<eos>']
    """
    rows, num_cut = _tokenize(
        examples,
        [(e.chosen, e.rejected) for e in examples],
        tokenizer,
        max_length,
        too_long,
    )
    for index, (example, (_, sides)) in enumerate(zip(examples, rows, strict=True)):
        chosen, rejected = sides
        check_different(chosen, rejected, _name(example, index))
    return [
        Preference(
            prompt,
            chosen,
            rejected,
            annotator=example.annotator,
            margin=example.margin,
            weight=example.weight,
            origin=example.origin,
        )
        for example, (prompt, (chosen, rejected)) in zip(examples, rows, strict=True)
    ], num_cut


def tokenize_rankings(
    examples: Sequence[Ranking[str]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    too_long: TooLong = "error",
) -> tuple[list[Ranking[TokenIds]], int]:
    """Rankings as token ids; a prompt is cut once, for all of its completions.

    No reference.

    Args:
      examples: rankings of text.
      tokenizer: any fast tokenizer of transformers that has an end token.
      max_length: most tokens of prompt and longest completion, <bos> and <eos>
        included.
      too_long: ``"error"`` or ``"keep_end"``.

    Returns:
      (rankings in their order, how many prompts were cut).

    Raises:
      DataError: as ``tokenize_demonstrations``.

    >>> from rlhf_jax.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["a b"], vocab_size=259)  # bytes
    >>> [row], _ = tokenize_rankings(
    ...     [Ranking("a", (" b", " cd"), ranks=(1, 0))], tokenizer, max_length=8)
    >>> [tokenizer.decode(ids) for ids in row.completions], row.ranks
    ([' b<eos>', ' cd<eos>'], (1, 0))
    """
    rows, num_cut = _tokenize(
        examples, [e.completions for e in examples], tokenizer, max_length, too_long
    )
    return [
        Ranking(prompt, completions, example.ranks, example.annotator, example.origin)
        for example, (prompt, completions) in zip(examples, rows, strict=True)
    ], num_cut


Answered = Demonstration[str] | Labeled[str] | Preference[str] | Ranking[str]


def _tokenize(
    examples: Sequence[Answered],
    completions: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    too_long: TooLong,
) -> tuple[list[tuple[TokenIds, tuple[TokenIds, ...]]], int]:
    """Each row's prompt and completions, within max_length together; prompts cut."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token to learn; set its eos_token")
    begin, end = _begin(tokenizer), (tokenizer.eos_token_id,)
    prompts = encode_texts(tokenizer, [example.prompt for example in examples])
    answers = iter(encode_texts(tokenizer, list(chain.from_iterable(completions))))
    rows, num_cut = [], 0
    for index, (example, texts) in enumerate(zip(examples, completions, strict=True)):
        name = _name(example, index)
        ids = tuple(next(answers) + end for _ in texts)
        longest = max(len(answer) for answer in ids)
        # At least one token must stand before the first that is predicted.
        if len(begin) + min(len(prompts[index]), 1) + longest > max_length:
            raise DataError(
                f"{name}: the completion alone has {longest} tokens, end token "
                f"included, which leaves no room for the prompt in "
                f"max_length={max_length}; raise max_length or remove the row"
            )
        room = max_length - longest
        limit = ("max_length", max_length)
        prompt, cut = _fit(begin, prompts[index], room, too_long, name, limit)
        rows.append((prompt, ids))
        num_cut += cut
    return rows, num_cut


def _fit(
    begin: TokenIds,
    prompt: TokenIds,
    room: int,
    too_long: TooLong,
    name: str,
    limit: tuple[str, int],  # the option that set the room, and its value
) -> tuple[TokenIds, bool]:
    """The prompt within room tokens, <bos> kept, and whether it was cut."""
    excess = len(begin) + len(prompt) - room
    if excess <= 0:
        return begin + prompt, False
    if too_long != "keep_end":
        option, most = limit
        raise DataError(
            f"{name}: {most + excess} tokens are more than {option}={most}; raise it, "
            f"or set too_long='keep_end' to keep the end of the prompt"
        )
    return begin + prompt[excess:], True


def check_different(chosen: TokenIds, rejected: TokenIds, name: str) -> None:
    """Raises where two texts that differ have the same tokens. No reference."""
    if chosen == rejected:
        raise DataError(
            f"{name}: chosen and rejected have the same tokens, so that neither is "
            "better; remove the row"
        )


def _begin(tokenizer: PreTrainedTokenizerFast) -> TokenIds:
    token: Any = tokenizer.bos_token_id  # annotated as more than the int that it is
    return () if token is None else (token,)


def _name(example: Answered | Prompt[str], index: int) -> str:
    return example.origin or f"example {index}"
