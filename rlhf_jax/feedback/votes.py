"""Who said what about what: judgements as votes, one entry a vote.

Agreement, reliability and consensus all read this form, so that missing votes are
simply not there.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.records import Ranking, Text
from rlhf_jax.data.sources import DataError, Row


@dataclass(frozen=True)
class Votes:
    """M votes of A annotators on U units, such as pairs of completions or texts."""

    unit: np.ndarray  # [M] int, what is judged: 0 … U − 1
    annotator: np.ndarray  # [M] int, by whom: 0 … A − 1
    value: np.ndarray  # [M] float, what they said
    item: np.ndarray  # [U] int, what a unit is part of: a ranking has many pairs


class Judged(NamedTuple):
    """Rankings, or ratings, as votes."""

    votes: Votes  # of a pair: 1 where the first is better, 0 for a tie, −1
    again: Votes  # what the same annotators said of the same items later
    units: list[tuple]  # (prompt, first, second) of pairs, (prompt, completion)
    annotators: list[int]  # their ids as the judgements have them


def table_votes(table: np.ndarray) -> Votes:
    """Votes of a table with a row a unit, a column an annotator. No reference.

    Args:
      table: [U, A] float, NaN where there is no vote.

    Returns:
      Votes; each unit is an item.

    Raises:
      ValueError: the table does not have two axes.

    >>> table_votes(np.array([[1.0, 2.0], [np.nan, 2.0]])).value.tolist()
    [1.0, 2.0, 2.0]
    """
    table = np.asarray(table, float)
    if table.ndim != 2:
        raise ValueError(
            f"a table of votes has shape {table.shape}: expected a row a unit and a "
            "column an annotator"
        )
    unit, annotator = np.nonzero(~np.isnan(table))
    return Votes(unit, annotator, table[unit, annotator], np.arange(len(table)))


def ranking_votes(rankings: Sequence[Ranking[Text]]) -> Judged:
    """Rankings of the same completions as votes on their pairs: better, tie or worse.

    Every pair is there in both orders, (i, j) and (j, i), so that nothing depends on
    which of two completions is written first. Rankings are of one item if prompt and
    set of completions are the same, in whatever order. What an annotator says of an
    item for the second time is no further vote: it is kept apart. No reference.

    Args:
      rankings: of any number of items, each with its annotator.

    Returns:
      The votes, those that repeat one, what the units are, and who the annotators are.

    Raises:
      DataError: there is no ranking, or one without its annotator. The message names
        the row.

    >>> judged = ranking_votes([
    ...     Ranking("2 + 2 =", (" 4", " 5"), (0, 1), annotator=7),
    ...     Ranking("2 + 2 =", (" 5", " 4"), (0, 0), annotator=9)])
    >>> judged.units[0], judged.annotators
    (('2 + 2 =', ' 4', ' 5'), [7, 9])
    >>> judged.votes.value.tolist()
    [1.0, -1.0, 0.0, 0.0]
    """
    if not rankings:
        raise DataError("no judgements: expected at least one ranking")
    said = []
    for ranking in rankings:
        rank = dict(zip(ranking.completions, ranking.ranks, strict=True))
        votes = {
            (ranking.prompt, a, b): np.sign(rank[b] - rank[a])
            for a in rank
            for b in rank
            if a != b
        }
        item = ranking.prompt, frozenset(rank)
        said.append(_Said(item, ranking.annotator, votes, ranking.origin))
    return _judged(said)


def rating_votes(rows: Sequence[Row]) -> Judged:
    """Ratings of single completions as votes: yes or no, or a number. No reference.

    Args:
      rows: with ``prompt``, ``completion``, ``annotator``, and ``label`` (1 yes, 0 no)
        or ``rating``; other columns are left alone. What an annotator says of a
        completion for the second time is kept apart.

    Returns:
      As ``ranking_votes``; each completion is a unit and an item.

    Raises:
      DataError: a column is missing or of a wrong type. The message names the row.

    >>> row = {"prompt": "2 + 2 =", "completion": "4", "annotator": 7, "rating": 5}
    >>> judged = rating_votes([Row(row, "ratings.jsonl", 1)])
    >>> judged.units, judged.votes.value.tolist()
    ([('2 + 2 =', '4')], [5.0])
    """
    said = []
    for row in rows:
        found = row.values
        unit = found.get("prompt"), found.get("completion")
        column = "label" if found.get("label") is not None else "rating"
        value: Any = found.get(column)
        who: Any = found.get("annotator", -1)
        if not all(isinstance(text, str) for text in unit) or type(who) is not int:
            raise DataError(
                f"{row.origin}: expected prompt and completion as text and annotator "
                f"as an integer; the columns are {', '.join(found)}; correct the row"
            )
        if type(value) not in (int, float) or not np.isfinite(value):
            raise DataError(
                f"{row.origin}: column {column!r}: expected a finite number, found "
                f"{value!r}; correct or remove the row"
            )
        said.append(_Said(unit, who, {unit: float(value)}, row.origin))
    return _judged(said)


class _Said(NamedTuple):
    """One judgement."""

    item: Hashable
    annotator: int
    votes: dict[tuple, float]  # by unit
    origin: str


def _judged(said: Sequence[_Said]) -> Judged:
    """Judgements as votes, those of an item and annotator after the first apart."""
    for judgement in said:
        if judgement.annotator < 0:
            raise DataError(
                f"{judgement.origin}: no annotator: votes need to be known apart; add "
                "a column annotator (an integer ≥ 0)"
            )
    people = sorted({judgement.annotator for judgement in said})
    items: dict[Hashable, int] = {}
    units: dict[tuple, tuple[int, int]] = {}  # (item, unit): number of each
    first, again, seen = [], [], set()
    for item, annotator, votes, _ in said:
        number = items.setdefault(item, len(items))
        kept = again if (item, annotator) in seen else first
        seen.add((item, annotator))
        for unit, value in votes.items():
            at, _ = units.setdefault((item, unit), (len(units), number))
            kept.append((at, people.index(annotator), value))
    of = np.array([number for _, number in units.values()], int)
    names = [unit for _, unit in units]
    return Judged(_votes(first, of), _votes(again, of), names, people)


def _votes(entries: list[tuple[int, int, float]], item: np.ndarray) -> Votes:
    columns = np.array(entries, float).reshape(-1, 3).T
    return Votes(columns[0].astype(int), columns[1].astype(int), columns[2], item)
