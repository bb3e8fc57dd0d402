"""``python -m rlhf_jax.feedback agreement``: who agrees, who is careless, consensus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from rlhf_jax.data.records import Ranking, preferences, rankings
from rlhf_jax.data.sources import DataError, Row, read_rows
from rlhf_jax.data.writing import write_rows
from rlhf_jax.feedback.agreement import Agreement, Interval, measure_agreement
from rlhf_jax.feedback.annotators import (
    DawidSkene,
    Reliability,
    annotator_abilities,
    dawid_skene,
)
from rlhf_jax.feedback.checks import gold_accuracy, self_agreement
from rlhf_jax.feedback.consensus import consensus_pairs
from rlhf_jax.feedback.votes import Judged, ranking_votes, rating_votes
from rlhf_jax.terminal import print_table

MOST_VALUES = 10  # of ratings: an annotator's table has a cell for each two of them
COLUMNS = (
    "annotator",
    "items",
    "with others (%)",
    "ability (κ)",
    "gold (%)",
    "repeats (%)",
    "",
)


@dataclass(frozen=True)
class Config:
    """How far annotators agree, who is careless, and what they prefer together."""

    file: tyro.conf.Positional[Path]
    """Judgements: .jsonl, .csv or .parquet, each row with its annotator, and prompt,
    completions, ranks; or prompt, chosen, rejected; or prompt, completion and label or
    rating."""
    out: Path | None = None
    """Where the consensus goes (.jsonl): pairs with weights, labels or ratings."""
    gold: Path | None = None
    """Judgements known to be right, which the annotators are compared with."""
    resamples: int = 1000
    """Draws of the items, for the intervals."""
    seed: int = 0
    """Of the draws."""


class Report(NamedTuple):
    """What is known of a crowd; lists have an entry an annotator."""

    judged: Judged
    model: DawidSkene
    agreement: Agreement
    reliability: list[Reliability]
    gold: list[Interval] | None
    repeats: list[Interval]


def main(config: Config) -> Report:
    """Reads, prints two tables, and writes the consensus if asked for. No reference."""
    rows = read_rows(config.file)
    gold = None if config.gold is None else as_gold(read_rows(config.gold))
    rng = np.random.default_rng(config.seed)
    found = crowd_report(as_votes(rows), gold=gold, rng=rng, resamples=config.resamples)
    names = {
        row.values["annotator"]: row.values["annotator_name"]
        for row in rows
        if "annotator_name" in row.values
    }
    print_report(found, names)
    if config.out is not None:
        agreed = consensus_rows(found.judged, found.model)
        write_rows(agreed, config.out)
        print(f"{len(agreed):,} consensus rows: {config.out}")
    return found


def as_votes(rows: Sequence[Row]) -> Judged:
    """Rankings, pairs or ratings as votes: whichever the first row is. No reference.

    Args:
      rows: as ``read_rows`` gives them, with ``ranks``, ``chosen``, or ``completion``.

    Returns:
      See ``ranking_votes`` and ``rating_votes``.

    Raises:
      DataError: a row is malformed, or without its annotator.

    >>> row = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "annotator": 3}
    >>> as_votes([Row(row, "pairs.jsonl", 1)]).votes.value.tolist()
    [1.0, -1.0]
    """
    columns = rows[0].values if rows else {}
    if "completion" in columns:
        return rating_votes(rows)
    if "chosen" not in columns:
        return ranking_votes(rankings(rows))
    pairs = preferences(rows)
    return ranking_votes(
        [
            Ranking(p.prompt, (p.chosen, p.rejected), (0, 1), p.annotator, p.origin)
            for p in pairs
        ]
    )


def as_gold(rows: Sequence[Row]) -> Judged:
    """The same of judgements that are right, whoever made them. No reference.

    >>> row = {"prompt": "2 + 2 =", "completions": ["5", "4"], "ranks": [1, 0]}
    >>> as_gold([Row(row, "gold.jsonl", 1)]).annotators
    [0]
    """
    return as_votes(
        [replace(row, values=row.values | {"annotator": 0}) for row in rows]
    )


def crowd_report(
    judged: Judged,
    *,
    gold: Judged | None = None,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Report:
    """All that is known of a crowd. No reference.

    Alpha is ordinal: of ratings, or of worse < tie < better on every pair in both
    orders. A tie is then a quarter of the disagreement that opposite orders are. For
    two annotators with equally many ties that is Kendall's τ_b (1945,
    doi:10.1093/biomet/33.3.239), but for alpha's correction of small samples; without
    ties, and of yes and no, nominal alpha is the same.

    Args:
      judged: the votes.
      gold: judgements that are known to be right.
      rng: of the bootstraps; moved on.
      resamples: of the bootstraps.

    Returns:
      The report.

    Raises:
      DataError: no two annotators have judged one item, or ratings have more than ten
        different values.

    >>> say = lambda who, *ranks: Ranking("p", ("a", "b"), ranks, annotator=who)
    >>> judged = ranking_votes([say(0, 0, 1), say(1, 0, 1)])
    >>> found = crowd_report(judged, rng=np.random.default_rng(0))
    >>> found.agreement.percent.value
    1.0
    """
    votes = judged.votes
    if np.bincount(votes.unit, minlength=1).max() < 2:
        raise DataError(
            "no item was judged by two annotators: agreement needs some rows with the "
            "same prompt and completions by different ones"
        )
    if (different := len(np.unique(votes.value))) > MOST_VALUES:
        raise DataError(
            f"the ratings have {different} different values: expected at most "
            f"{MOST_VALUES}; round them"
        )
    model = dawid_skene(votes)
    return Report(
        judged,
        model,
        measure_agreement(votes, level="ordinal", rng=rng, resamples=resamples),
        annotator_abilities(votes, model, rng=rng, resamples=resamples),
        gold=None if gold is None else gold_accuracy(judged, gold),
        repeats=self_agreement(judged),
    )


def print_report(report: Report, names: Mapping[int, str]) -> None:
    """Prints alpha and percent, then a row an annotator. No reference.

    Args:
      report: of a crowd.
      names: of annotators, by id; those without one are shown by their id.
    """
    votes, (alpha, percent, each) = report.judged.votes, report.agreement
    items, people = votes.item[votes.unit], report.judged.annotators
    own = [len(set(items[votes.annotator == who])) for who in range(len(people))]
    numbers = [len(set(items)), sum(own), len(people)]
    print_table(
        "Agreement (95 % intervals over items)",
        ["items", "judgements", "annotators", "Krippendorff's α", "equal votes (%)"],
        [[*numbers, _number(alpha), _percent(percent)]],
    )
    missing = Interval(np.nan, np.nan, np.nan)
    print_table(
        "Annotators",
        COLUMNS,
        [
            [
                f"{names[name]} ({name})" if name in names else name,
                own[who],
                _percent(each[who]),
                _number(report.reliability[who].ability),
                _percent(report.gold[who] if report.gold else missing),
                _percent(report.repeats[who]),
                "careless" if report.reliability[who].careless else "",
            ]
            for who, name in enumerate(people)
        ],
    )


def consensus_rows(judged: Judged, model: DawidSkene) -> list[dict[str, Any]]:
    """The consensus as rows of a file. No reference.

    Args:
      judged: the votes and what the units are.
      model: fitted to them.

    Returns:
      Of pairs: prompt, chosen, rejected, weight, see ``consensus_pairs``. Of yes and
      no: prompt, completion, and the more probable label. Of other ratings: prompt,
      completion, and the mean of the rating's posterior.

    >>> rows = [Row({"prompt": "p", "completion": "a", "label": 1, "annotator": n},
    ...             "labels.jsonl", n) for n in range(2)]
    >>> judged = as_votes(rows)
    >>> consensus_rows(judged, dawid_skene(judged.votes))
    [{'prompt': 'p', 'completion': 'a', 'label': 1}]
    """
    if len(judged.units[0]) == 3:
        return [
            {
                "prompt": pair.prompt,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "weight": round(pair.weight, 6),
            }
            for pair in consensus_pairs(judged, model)
        ]
    means = model.posterior @ model.values
    binary = set(model.values.tolist()) <= {0.0, 1.0}
    said = lambda mean: {"label": int(mean > 0.5)} if binary else {"rating": mean}
    return [
        {"prompt": prompt, "completion": completion} | said(round(mean, 6))
        for (prompt, completion), mean in zip(judged.units, means.tolist(), strict=True)
    ]


def _number(found: Interval) -> str:
    if not np.isfinite(found.value):
        return "–"
    return f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})"


def _percent(found: Interval) -> str:
    if not np.isfinite(found.value):
        return "–"
    value, low, high = (100 * share for share in found)
    return f"{value:.0f} ({low:.0f}–{high:.0f})"
