"""What a data set looks like: lengths, duplicates, how often the longer answer wins."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.conversations import Conversation
from rlhf_jax.data.formats import Record
from rlhf_jax.data.records import Preference, Ranking, content
from rlhf_jax.data.tokenizer import encode_texts

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_AT_A_TIME = 4096  # texts that a tokenizer gets

Part = tuple[str, str]  # what it is, such as "chosen", and its text


class Duplicates(NamedTuple):
    """How often the same comes again."""

    prompts: int  # records whose prompt, not empty, an earlier one has
    records: int  # records equal to an earlier one, annotator included
    pairs: int  # pairs of the same two answers, in this order, as an earlier one
    contradictions: int  # pairs of answers of which either was preferred


class LengthBias(NamedTuple):
    """How often the longer of two answers is preferred."""

    share: float  # over records, each counted once; NaN without any
    low: float  # 95 % interval
    high: float
    records: int  # with a pair of answers of different lengths
    equal: int  # pairs of answers of equal length, left out


def parts(record: Record) -> list[Part]:
    """A record's texts by what they are; messages as their contents. No reference.

    Args:
      record: of text or of messages.

    Returns:
      (name, text) of prompt and answers; a prompt that is empty is left out.

    >>> parts(Preference("2 =", " 2", " 3"))
    [('prompt', '2 ='), ('chosen', ' 2'), ('rejected', ' 3')]
    """
    if isinstance(record, Conversation):
        return [("messages", _text(record.messages))]
    found = []
    for name in ("prompt", "completion", "chosen", "rejected"):
        if value := vars(record).get(name):
            found.append((name, _text(value)))
    if isinstance(record, Ranking):
        found += [("completion", _text(text)) for text in record.completions]
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(message["content"] for message in value)


def count_lengths(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerFast | None
) -> list[list[int]]:
    """The length of every part of every record. No reference.

    Args:
      records: of text or of messages.
      tokenizer: whose tokens are counted, without special ones; None counts words.

    Returns:
      A list for each record, in the order of ``parts``.

    >>> count_lengths([Preference("2 + 2 =", " 4", " 4 I think")], None)
    [[4, 1, 3]]
    """
    texts = (text for record in records for _, text in parts(record))
    if tokenizer is None:
        counts = (len(text.split()) for text in texts)
    else:
        counts = _token_counts(texts, tokenizer)
    return [[next(counts) for _ in parts(record)] for record in records]


def _token_counts(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[int]:
    while batch := list(islice(texts, _AT_A_TIME)):
        yield from map(len, encode_texts(tokenizer, batch))


def length_percentiles(
    records: Sequence[Record], lengths: Sequence[Sequence[int]]
) -> list[tuple[str, int, list[int]]]:
    """Percentiles of the length of each kind of part, and of the longest whole row.

    No reference.

    Args:
      records: of text or of messages.
      lengths: of their parts, from ``count_lengths``.

    Returns:
      (name, how many, lengths at ``PERCENTILES``) a kind; ``"row"`` is the prompt with
      its longest answer, which is what a model must have room for.

    >>> rows = length_percentiles([Preference("2 =", " 2", " 3 ?")], [[2, 1, 2]])
    >>> [(name, at[-1]) for name, _, at in rows]
    [('prompt', 2), ('chosen', 1), ('rejected', 2), ('row', 4)]
    """
    found: dict[str, list[int]] = {}
    rows = []
    for record, counts in zip(records, lengths, strict=True):
        names = [name for name, _ in parts(record)]
        for name, count in zip(names, counts, strict=True):
            found.setdefault(name, []).append(count)
        prompt = counts[0] if names[:1] == ["prompt"] else 0
        rows.append(prompt + max(counts[1:] if prompt else counts, default=0))
    if set(found) > {"prompt"}:
        found["row"] = rows
    # An observed length, never one between two.
    return [
        (
            name,
            len(counts),
            np.percentile(counts, PERCENTILES, method="higher").tolist(),
        )
        for name, counts in found.items()
    ]


def pairs(record: Record) -> list[tuple[Any, Any]]:
    """(better, worse) answers of a preference or of a ranking; ties say nothing.

    No reference.

    Args:
      record: any; others have none.

    Returns:
      All pairs of which one is preferred.

    >>> pairs(Ranking("2 =", (" 3", " 2", " 4"), ranks=(1, 0, 1)))
    [(' 2', ' 3'), (' 2', ' 4')]
    """
    if isinstance(record, Preference):
        return [(record.chosen, record.rejected)]
    if not isinstance(record, Ranking):
        return []
    ranked = sorted(
        zip(record.ranks, record.completions, strict=True), key=lambda pair: pair[0]
    )
    return [(a, b) for (i, a), (j, b) in combinations(ranked, 2) if i < j]


def count_duplicates(records: Sequence[Record]) -> Duplicates:
    """Prompts, records and pairs that come again, and pairs that contradict.

    No reference. Equal is equal to the character.

    Args:
      records: of text or of messages.

    Returns:
      The counts.

    >>> both_ways = [Preference("2 =", " 2", " 3"), Preference("2 =", " 3", " 2")]
    >>> count_duplicates(both_ways)
    Duplicates(prompts=1, records=0, pairs=0, contradictions=1)
    """
    prompts: set[Any] = set()
    whole: set[Any] = set()
    judged: Counter[Any] = Counter()
    num_prompts = 0
    for record in records:
        values = {name: _key(value) for name, value in content(record).items()}
        whole.add((type(record), *values.values()))
        prompt = values.get("prompt")
        if prompt:
            num_prompts += 1
            prompts.add(prompt)
        judged.update((prompt, _key(a), _key(b)) for a, b in pairs(record))
    return Duplicates(
        prompts=num_prompts - len(prompts),
        records=len(records) - len(whole),
        pairs=judged.total() - len(judged),
        contradictions=sum((p, b, a) in judged for p, a, b in judged) // 2,
    )


def _key(value: Any) -> Any:
    """Something hashable: messages as their JSON."""
    if isinstance(value, tuple) and value and not isinstance(value[0], str | int):
        return json.dumps(value)
    return value


def length_bias(
    records: Sequence[Record], lengths: Sequence[Sequence[int]]
) -> LengthBias:
    """The share of pairs whose longer answer is preferred, with a 95 % interval.

    Wilson 1927, "Probable Inference" (no arXiv number), for the interval. The pairs of
    a ranking count as one record with the share among them, whose variance is at most
    that of a yes or no, so that the interval is rather too wide.

    Args:
      records: preferences and rankings; others say nothing.
      lengths: of their parts, from ``count_lengths``.

    Returns:
      The share, its interval and what it is made of.

    >>> records = [Preference("2 =", " 2", " 3 ?"), Preference("3 =", " 3 !", " 2")]
    >>> bias = length_bias(records, [[2, 1, 2], [2, 2, 1]])
    >>> bias.share, round(bias.low, 2), round(bias.high, 2), bias.records
    (0.5, 0.09, 0.91, 2)
    """
    shares, equal = [], 0
    for record, counts in zip(records, lengths, strict=True):
        if not isinstance(record, Preference | Ranking):
            continue
        offset = 1 if record.prompt else 0
        if isinstance(record, Preference):
            differences = [counts[offset] - counts[offset + 1]]
        else:
            ranked = sorted(zip(record.ranks, counts[offset:], strict=True))
            differences = [m - n for (i, m), (j, n) in combinations(ranked, 2) if i < j]
        unequal = [d > 0 for d in differences if d]
        equal += len(differences) - len(unequal)
        if unequal:
            shares.append(sum(unequal) / len(unequal))
    if not shares:
        return LengthBias(math.nan, math.nan, math.nan, 0, equal)
    return LengthBias(*_wilson(sum(shares), len(shares)), len(shares), equal)


def _wilson(successes: float, count: int) -> tuple[float, float, float]:
    z = 1.959964  # 97.5 % of a normal variable lie below
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    half = spread / (1 + z**2 / count)
    return share, centre - half, centre + half
