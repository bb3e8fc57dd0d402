"""Rows of every known format, as its authors write them, with what they mean."""

from data.malformed import ASK, FIVE, FOUR

from rlhf_jax.data import (
    Conversation,
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
)
from rlhf_jax.data.columns import annotator_number

ASKED, FOURS, FIVES = tuple(ASK), tuple(FOUR), tuple(FIVE)
HELLO = "\n\nHuman: Hi\n\nAssistant:"
POST = {"post": "I lost it.", "title": "Help", "subreddit": "pets", "article": None}
NEWS = {"post": None, "title": "A day", "article": "It rained."}
SUMMARIES = [
    {"text": " Lost.", "policy": "sup1", "note": None},
    {"text": "Found.", "policy": "ref"},
]
HEAD = "SUBREDDIT: r/pets\n\nTITLE: Help\n\nPOST: I lost it.\n\nTL;DR:"


def rated(text, *ratings, **scores):
    names = ("helpfulness", "honesty", "truthfulness", "instruction_following")
    annotations = {
        name: {"Rating": rating, "Rationale": "…"}
        for name, rating in zip(names, ratings, strict=False)
    }
    return {"model": "m", "response": text, "annotations": annotations} | scores


def pairwise(selected, by, names="answer1,answer2", **more):
    named = {"type": "pairwise", "from_name": "comparison", "to_name": names}
    result = {**named, "value": {"selected": selected}}
    return {"id": 1, "completed_by": by, "result": [result], **more}


def ranker(value):
    return {"type": "ranker", "from_name": "rank", "value": {"ranker": value}}


TASK = {"prompt": "2 + 2?", "answer1": "5", "answer2": "4"}
ITEMS = [{"id": f"llm_{i}", "title": f"LLM {i}", "body": str(i)} for i in (5, 4, 3)]
RANKED = {"prompt": "2 + 2?", "items": ITEMS}
FIELDS = {"prompt": "2 + 2?", "response1": "5", "response2": "4", "response3": "four"}
ANN = annotator_number("5f3c")

# (format, row, records)
EXAMPLES = [
    ("prompt", {"prompt": "2 + 2 =", "id": 3}, [Prompt("2 + 2 =")]),
    ("prompt", {"prompt": ASK}, [Conversation(ASKED)]),
    ("language_modeling", {"text": "2 + 2 = 4"}, [Demonstration("", "2 + 2 = 4")]),
    ("language_modeling", {"messages": ASK + FOUR}, [Conversation(ASKED + FOURS)]),
    (  # as UltraChat has it: what the prompt says stands in the messages, too
        "language_modeling",
        {"prompt": "2 + 2?", "messages": ASK + FOUR},
        [Conversation(ASKED + FOURS)],
    ),
    (
        "prompt_completion",
        {"prompt": "2 =", "completion": " 2"},
        [Demonstration("2 =", " 2")],
    ),
    (
        "prompt_completion",
        {"prompt": ASK, "completion": FOUR},
        [Conversation(ASKED + FOURS)],
    ),
    (
        "preference",
        {"prompt": "2 =", "chosen": " 2", "rejected": " 3", "annotator": 7},
        [Preference("2 =", " 2", " 3", annotator=7)],
    ),
    (
        "preference",
        {"prompt": ASK, "chosen": FOUR, "rejected": FIVE, "margin": 0.5, "weight": 2},
        [Preference(ASKED, FOURS, FIVES, margin=0.5, weight=2.0)],
    ),
    (
        "implicit_preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        [Preference("The sky is", " blue.", " black.")],
    ),
    (
        "implicit_preference",
        {"chosen": ASK + FOUR, "rejected": ASK + FIVE},
        [Preference(ASKED, FOURS, FIVES)],
    ),
    (
        "unpaired",
        {"prompt": "2 =", "completion": " 2", "label": True},
        [Labeled("2 =", " 2", 1)],
    ),
    (
        "unpaired",
        {"prompt": ASK, "completion": FIVE, "label": False},
        [Labeled(ASKED, FIVES, 0)],
    ),
    (
        "unpaired",
        {"text": "A warm film.", "label": 1},
        [Labeled("", "A warm film.", 1)],
    ),
    (
        "stepwise",
        {
            "prompt": "2 + 3 + 4?",
            "completions": ["2 + 3 = 5", "5 + 4 = 8"],
            "labels": [True, False],
        },
        [
            Labeled("2 + 3 + 4?", "2 + 3 = 5", 1),
            Labeled("2 + 3 + 4?2 + 3 = 5\n", "5 + 4 = 8", 0),
        ],
    ),
    (
        "ranking",
        {"prompt": "2 =", "completions": [" 3", " 2", " 4"], "ranks": [1, 0, 1]},
        [Ranking("2 =", (" 3", " 2", " 4"), (1, 0, 1))],
    ),
    (
        "hh",
        {"chosen": HELLO + " Hello!", "rejected": HELLO + " Help!"},
        [Preference(HELLO, " Hello!", " Help!")],
    ),
    (
        "summarize_from_feedback",
        {
            "info": POST,
            "summaries": SUMMARIES,
            "choice": 1,
            "worker": "5f3c",
            "extra": {},
        },
        [Preference(HEAD, " Found.", " Lost.", annotator=ANN)],
    ),
    (
        "summarize_from_feedback",
        {"info": NEWS, "summaries": SUMMARIES, "choice": 0},
        [Preference("Article:\nIt rained.\n\nTL;DR:", " Lost.", " Found.")],
    ),
    (
        "ultrafeedback",
        {
            "instruction": "2 + 2?",
            "completions": [
                rated("5", overall_score=3.5),
                rated("4", overall_score="8.5"),
                rated("four", overall_score=8.5),
            ],
        },
        [Ranking("2 + 2?", ("5", "4", "four"), (1, 0, 0))],
    ),
    (
        "ultrafeedback",  # no overall score of one: means of what ratings there are
        {
            "instruction": "2 + 2?",
            "completions": [
                rated("5", "1", "2", "N/A", overall_score=9),
                rated("4", "5", "4", "5", "5"),
            ],
        },
        [Ranking("2 + 2?", ("5", "4"), (1, 0))],
    ),
    (
        "ultrafeedback_binarized",
        {
            "prompt": "2 + 2?",
            "chosen": ASK + FOUR,
            "rejected": ASK + FIVE,
            "messages": ASK + FOUR,
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        [Preference(ASKED, FOURS, FIVES)],
    ),
    (
        "label_studio",  # two people, and one who skipped it
        {
            "id": 1,
            "data": TASK,
            "annotations": [
                pairwise("right", 7),
                pairwise("answer1", {"id": 8, "email": "a@b.c"}),
                pairwise("left", 9, was_cancelled=True),
            ],
        },
        [
            Preference("2 + 2?", "4", "5", annotator=7),
            Preference("2 + 2?", "5", "4", annotator=8),
        ],
    ),
    (
        "label_studio",  # tags named otherwise than the data's keys
        {"data": TASK, "annotations": [pairwise("left", None, names="txt-1,txt-2")]},
        [Preference("2 + 2?", "5", "4")],
    ),
    (
        "label_studio",  # JSON-MIN
        TASK
        | {"id": 1, "comparison": [{"selected": "right"}], "annotator": 7}
        | {"annotation_id": 5, "created_at": "2024-01-01", "lead_time": 2.5},
        [Preference("2 + 2?", "4", "5", annotator=7)],
    ),
    (
        "label_studio",
        {
            "data": RANKED,
            "annotations": [
                {
                    "completed_by": 7,
                    "result": [ranker({"rank": ["llm_4", "llm_3", "llm_5"]})],
                }
            ],
        },
        [Ranking("2 + 2?", ("5", "4", "3"), (2, 0, 1), annotator=7)],
    ),
    (
        "label_studio",
        RANKED
        | {"rank": [{"ranker": ["llm_5", "llm_4", "llm_3"]}], "annotation_id": 5},
        [Ranking("2 + 2?", ("5", "4", "3"), (0, 1, 2))],
    ),
    (
        "argilla",  # version 2
        {
            "id": "a",
            "fields": FIELDS,
            "responses": {
                "ranking": [
                    {
                        "value": ["response2", "response1", "response3"],
                        "user_id": "5f3c",
                    },
                    {"value": ["response1", "response2", "response3"], "user_id": "77"},
                ],
                "quality": [{"value": "good", "user_id": "5f3c"}],
            },
        },
        [
            Ranking("2 + 2?", ("4", "5", "four"), (0, 1, 2), annotator=ANN),
            Ranking("2 + 2?", ("5", "4", "four"), (0, 1, 2), annotator_number("77")),
        ],
    ),
    (
        "argilla",  # version 1: with ties, and a draft
        {
            "fields": {"instruction": "2 + 2?", "response-1": "5", "response-2": "4"},
            "responses": [
                {
                    "user_id": "5f3c",
                    "status": "submitted",
                    "values": {
                        "preference": {
                            "value": [
                                {"rank": 1, "value": "Response 1"},
                                {"rank": 1, "value": "Response 2"},
                            ]
                        }
                    },
                },
                {
                    "user_id": "5f3c",
                    "status": "draft",
                    "values": {"preference": {"value": ["Response 2", "Response 1"]}},
                },
            ],
        },
        [Ranking("2 + 2?", ("5", "4"), (0, 0), annotator=ANN)],
    ),
]
