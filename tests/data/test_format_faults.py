"""What is wrong with rows of published formats and exports, in words that help."""

import re

import pytest
from data.format_examples import (
    FIELDS,
    POST,
    RANKED,
    SUMMARIES,
    TASK,
    pairwise,
    ranker,
    rated,
)
from data.malformed import ASK, FIVE, FOUR

from rlhf_jax.data import FORMATS, DataError

ONE = rated("5", overall_score=1)
FAULTS = [
    (
        "summarize_from_feedback",
        {"info": 3, "summaries": SUMMARIES},
        "'info': expected a mapping, found 3",
    ),
    (
        "summarize_from_feedback",
        {"info": {}, "summaries": SUMMARIES, "choice": 0},
        "'info': expected a post or",
    ),
    (
        "summarize_from_feedback",
        {"info": POST, "summaries": SUMMARIES[:1]},
        "'summaries': expected a list of two",
    ),
    (
        "summarize_from_feedback",
        {"info": POST, "summaries": SUMMARIES * 2},
        "'summaries': expected a list of two",
    ),
    (
        "summarize_from_feedback",
        {"info": POST, "summaries": SUMMARIES},
        "no column 'choice'",
    ),
    (
        "summarize_from_feedback",
        {"info": POST, "summaries": SUMMARIES, "choice": 2},
        "'choice': expected 0 or 1",
    ),
    (
        "summarize_from_feedback",
        {"info": POST, "summaries": [SUMMARIES[0]] * 2, "choice": 0},
        "two different texts",
    ),
    (
        "ultrafeedback",
        {"instruction": "2?", "completions": [ONE]},
        "a list of at least two completions, found [{",
    ),
    (
        "ultrafeedback",
        {"instruction": "2?", "completions": ["5", "4"]},
        "expected mappings with a response, found '5'",
    ),
    (
        "ultrafeedback",
        {"instruction": "", "completions": [ONE, ONE]},
        "'instruction': expected text",
    ),
    (
        "ultrafeedback",
        {"instruction": "2?", "completions": [ONE, rated("4")]},
        "an overall_score of each, or ratings",
    ),
    (
        "ultrafeedback",
        {"instruction": "2?", "completions": [ONE, rated("4", overall_score=10**400)]},
        "an overall_score of each, or ratings",
    ),
    (
        "ultrafeedback",
        {"instruction": "2?", "completions": [ONE, rated("5", overall_score=2)]},
        "equal ranks for equal",
    ),
    (
        "ultrafeedback_binarized",
        {"prompt": "2?", "chosen": ASK + FOUR, "rejected": "5"},
        "'rejected': expected a list",
    ),
    (
        "implicit_preference",
        {"chosen": ASK + FOUR, "rejected": [ASK[0] | {"content": "3?"}, *FIVE]},
        "for a prompt to be in common",
    ),
    (
        "implicit_preference",
        {"chosen": ASK + FOUR, "rejected": ASK},
        "a last message of assistant, found 'user'",
    ),
    (
        "implicit_preference",
        {"chosen": "a b", "rejected": "a b"},
        "expected another answer than chosen",
    ),
    (
        "stepwise",
        {"prompt": "2?", "completions": ["a", "b"], "labels": [True]},
        "'labels': expected 2 labels, one a step",
    ),
    (
        "stepwise",
        {"prompt": "2?", "completions": ["a"], "labels": ["yes"]},
        "'labels': expected 0 or 1, found 'yes'",
    ),
    (
        "stepwise",
        {"prompt": "2?", "completions": [], "labels": []},
        "'completions': expected a list of steps",
    ),
    (
        "language_modeling",
        {"messages": ASK},
        "a last message of assistant, found 'user'",
    ),
    (
        "label_studio",
        {"data": None, "annotations": [pairwise("left", 1)]},
        "'data': expected a mapping, found null",
    ),
    (
        "label_studio",
        {"data": TASK, "annotations": []},
        "'annotations': expected one that is not skipped, found none",
    ),
    (
        "label_studio",
        {"data": TASK, "annotations": [{"result": []}]},
        "a result of Pairwise or Ranker, found []",
    ),
    (
        "label_studio",
        {"data": TASK, "annotations": [pairwise("both", 1)]},
        "left, right, answer1 or answer2, found 'both'",
    ),
    (
        "label_studio",
        {"data": {"prompt": "2?", "a": "b"}, "annotations": [pairwise("left", 1)]},
        "two texts to compare",
    ),
    (
        "label_studio",
        TASK | {"annotation_id": 1},
        "with the result of Pairwise or Ranker, found prompt, answer1",
    ),
    (
        "label_studio",
        RANKED
        | {"annotation_id": 1, "rank": ranker({"good": ["llm_5"], "bad": []})["value"]},
        "buckets say nothing",
    ),
    (
        "label_studio",
        RANKED | {"annotation_id": 1, "rank": ranker(["llm_5"])["value"]},
        "the ids of the items (llm_5, llm_4, llm_3)",
    ),
    ("argilla", {"responses": {}}, "no column 'fields'; the columns are responses"),
    (
        "argilla",
        {"fields": FIELDS, "responses": {}},
        "a submitted ranking of the fields prompt, response1",
    ),
    (
        "argilla",
        {"fields": {"response1": "5"}, "responses": {}},
        "'fields': expected text that is not empty, found null",
    ),
    (
        "argilla",
        {"fields": FIELDS, "responses": {"tags": [{"value": ["sums", "short"]}]}},
        "a submitted ranking",
    ),
]


@pytest.mark.parametrize("format, values, reason", FAULTS)
def test_faults_name_row_and_column(format, values, reason, row):
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: .*" + re.escape(reason)):
        FORMATS[format](row(**values))
