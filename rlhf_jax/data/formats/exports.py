"""What labelling tools export, to records: Label Studio and Argilla.

A task that several people judged becomes one record for each of them.
"""

import re
from dataclasses import replace
from typing import Any

from rlhf_jax.data.columns import (
    annotator_number,
    check_text,
    column_error,
    describe,
    list_column,
    mapping_column,
)
from rlhf_jax.data.records import Preference, Ranking, rankings
from rlhf_jax.data.row import Row

# What Label Studio writes beside a task's data in its short form, JSON-MIN.
JSON_MIN = {
    "id",
    "annotator",
    "annotation_id",
    "created_at",
    "updated_at",
    "lead_time",
    "agreement",
}

Judged = Preference[str] | Ranking[str]


def label_studio(row: Row) -> list[Judged]:
    """Label Studio: Pairwise and Ranker, as JSON or as JSON-MIN. No reference."""
    if "annotations" not in row.values:
        return [_short_task(row)]
    data = mapping_column(row, "data")
    wanted = "a list of annotations"
    given = list_column(row, "annotations", wanted, least=0)
    kept = [a for a in given if isinstance(a, dict) and not a.get("was_cancelled")]
    if not kept:
        raise column_error(row, "annotations", "one that is not skipped", "none")
    return [_annotation(row, data, annotation) for annotation in kept]


def _annotation(row: Row, data: dict[str, Any], annotation: dict[str, Any]) -> Judged:
    results = annotation.get("result")
    for result in results if isinstance(results, list) else []:
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict) and {"selected", "ranker"} & value.keys():
            by = annotation.get("completed_by")
            by = by.get("id", by.get("email")) if isinstance(by, dict) else by
            names = str(result.get("to_name")).split(",")
            return _judged(row, data, value, names, annotator_number(by))
    wanted = "a result of Pairwise or Ranker"
    raise column_error(row, "annotations", wanted, describe(results))


def _short_task(row: Row) -> Judged:
    data = {k: value for k, value in row.values.items() if k not in JSON_MIN}
    for name, value in data.items():
        [value] = value if isinstance(value, list) and len(value) == 1 else [value]
        if isinstance(value, dict) and {"selected", "ranker"} & value.keys():
            data.pop(name)
            by = annotator_number(row.values.get("annotator"))
            return _judged(row, data, value, [], by)
    found = ", ".join(map(str, data))
    wanted = "one with the result of Pairwise or Ranker"
    raise column_error(row, "annotation_id", f"beside it {wanted}", found or "none")


def _judged(
    row: Row, data: dict[str, Any], value: dict[str, Any], names: list[str], by: int
) -> Judged:
    prompt = data.get("prompt")
    check_text(row, "prompt", prompt)
    if "ranker" in value:
        return _ranker(row, data, value["ranker"], by)
    if len(names) != 2 or not set(names) <= data.keys():
        names = [k for k, v in data.items() if k != "prompt" and isinstance(v, str)]
    if len(names) != 2:
        wanted = "two texts to compare beside prompt"
        raise column_error(row, "data", wanted, ", ".join(names) or "none")
    for name in names:
        check_text(row, name, data[name])
    selected = value["selected"]
    side = {"left": 0, "right": 1, names[0]: 0, names[1]: 1}.get(str(selected))
    if side is None:
        wanted = f"left, right, {names[0]} or {names[1]}"
        raise column_error(row, "selected", wanted, describe(selected))
    chosen, rejected = data[names[side]], data[names[1 - side]]
    if chosen == rejected:
        raise column_error(row, names[1], f"a text other than {names[0]}", "the same")
    return Preference(str(prompt), chosen, rejected, by, origin=row.origin)


def _ranker(row: Row, data: dict[str, Any], ranker: Any, by: int) -> Ranking[str]:
    """One ordered list of the ids of the items; buckets are no order."""
    lists = [*ranker.values()] if isinstance(ranker, dict) else [ranker]
    if len(lists) != 1 or not isinstance(lists[0], list):
        wanted = "one list of ids in order (buckets say nothing of their order)"
        raise column_error(row, "ranker", wanted, describe(ranker))
    order = [str(name) for name in lists[0]]
    texts = {
        str(item.get("id")): item.get("body", item.get("text"))
        for items in data.values()
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict)
    }
    if not texts or sorted(texts) != sorted(order):
        wanted = f"the ids of the items ({', '.join(texts) or 'none'}), each once"
        raise column_error(row, "ranker", wanted, describe(order))
    return _ranking(row, data["prompt"], texts, [*map(order.index, texts)], by)


def _ranking(
    row: Row, prompt: Any, texts: dict[str, Any], ranks: list[int], by: int
) -> Ranking[str]:
    values = {
        "prompt": prompt,
        "completions": [*texts.values()],
        "ranks": ranks,
        "annotator": by,
    }
    return rankings([replace(row, values=values)])[0]


def argilla(row: Row) -> list[Ranking[str]]:
    """Argilla: records with ``fields``, and ``responses`` to a ranking question.

    No reference.
    """
    fields = mapping_column(row, "fields")
    prompt = fields.get("prompt", fields.get("instruction"))
    check_text(row, "fields", prompt)
    texts = {_plain(name): text for name, text in fields.items()}
    found = []
    for ranks, by in _ranks(row.values.get("responses")):
        if ranks.keys() <= texts.keys():
            order = sorted(set(ranks.values()))  # they are counted from 1
            dense = [order.index(rank) for rank in ranks.values()]
            ranked = {name: texts[name] for name in ranks}
            found.append(_ranking(row, prompt, ranked, dense, by))
    if not found:
        wanted = f"a submitted ranking of the fields {', '.join(fields)}"
        given = describe(row.values.get("responses"))
        raise column_error(row, "responses", wanted, given)
    return found


def _ranks(responses: Any) -> list[tuple[dict[str, int], int]]:
    """(rank of each name, annotator) of all that is a submitted ranking.

    Records of Argilla 2 map questions to answers of several users; those of version 1
    list users with their answers to questions.
    """
    answers: list[Any] = []
    if isinstance(responses, dict):
        lists = (given for given in responses.values() if isinstance(given, list))
        answers = [answer for given in lists for answer in given]
    elif isinstance(responses, list):
        for user in responses:
            values = user.get("values") if isinstance(user, dict) else None
            given = values.values() if isinstance(values, dict) else ()
            answers += [{**user, **a} for a in given if isinstance(a, dict)]
    return [
        (ranks, annotator_number(answer.get("user_id")))
        for answer in answers
        if isinstance(answer, dict)
        and answer.get("status") in (None, "submitted")
        and (ranks := _named_ranks(answer.get("value")))
    ]


def _named_ranks(value: Any) -> dict[str, int]:
    """The ranks of the names in an answer: a list in order, or of names with ranks."""
    if not isinstance(value, list) or len(value) < 2:
        return {}
    names = [v.get("value") if isinstance(v, dict) else v for v in value]
    ranks = [
        v.get("rank", i) if isinstance(v, dict) else i for i, v in enumerate(value)
    ]
    if not all(type(rank) is int for rank in ranks):
        return {}
    return dict(zip(map(_plain, names), ranks, strict=True))


def _plain(name: Any) -> str:
    """``Response 1``, ``response-1`` and ``response1`` are the same one."""
    return re.sub(r"[\W_]", "", str(name)).lower()
