"""Rows of preferences, each malformed in a way of its own, and what must be said."""

import json
from typing import Any

from rlhf_jax.data.quarantine import LARGEST_ROW

ASK = [{"role": "user", "content": "2 + 2?"}]
FOUR = [{"role": "assistant", "content": "4"}]
FIVE = [{"role": "assistant", "content": "5"}]
PAIR = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
CHAT = {"prompt": ASK, "chosen": FOUR, "rejected": FIVE}
GOOD = [PAIR, CHAT, PAIR | {"annotator": 3, "margin": 0.5, "weight": 2}]


def without(column: str) -> dict[str, Any]:
    return {name: value for name, value in PAIR.items() if name != column}


def told(role: Any, content: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


# What is no row: text or bytes as they stand in the file.
LINES: dict[str, tuple[str | bytes, str]] = {
    "cut off": ('{"prompt": "2 + 2 =", "chosen": " 4"', "not JSON (Expecting ','"),
    "cut off in a text": ('{"prompt": "2 +', "not JSON (Unterminated string"),
    "single quotes": ("{'prompt': '2 + 2 ='}", "not JSON (Expecting property name"),
    "comma at the end": ('{"prompt": "2",}', "not JSON ("),
    "no JSON at all": ("2 + 2 = 4, not 5", "not JSON (Extra data"),
    "two objects": (json.dumps(PAIR) * 2, "not JSON (Extra data, at character 56"),
    "a bare word": ("prompt", "not JSON (Expecting value"),
    "a tab in a text": ('{"prompt": "2\t+ 2"}', "not JSON (Invalid control character"),
    "an unknown escape": (r'{"prompt": "2 \+ 2"}', "not JSON (Invalid \\escape"),
    "a mark within the file": (
        "\ufeff" + json.dumps(PAIR),
        "a byte-order mark, which",
    ),
    "NaN": ('{"prompt": "2", "margin": NaN}', "NaN is not a number that JSON knows"),
    "infinity": ('{"prompt": "2", "margin": -Infinity}', "-Infinity is not a number"),
    "a key twice": ('{"prompt": "2", "prompt": "3"}', "the key 'prompt' comes twice"),
    "too deep": ("[" * 100_000, "not JSON (maximum recursion depth"),
    "not UTF-8": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "not UTF-8 (byte 0xe9"),
    "a list": ("[1, 2]", "expected a JSON object, found list"),
    "a text": ('"2 + 2 = 4"', "expected a JSON object, found str"),
    "null": ("null", "expected a JSON object, found NoneType"),
    "a number": ("4", "expected a JSON object, found int"),
}

NO_TEXT = "expected text that is not empty, found"

# What is no preference: columns with wrong values.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no columns": ({}, "no column 'prompt'; the columns are none"),
    "no prompt": (without("prompt"), "no column 'prompt'; the columns are chosen, rej"),
    "no chosen": (without("chosen"), "no column 'chosen'; the columns are prompt, rej"),
    "no rejected": (without("rejected"), "no column 'rejected'"),
    "prompt null": (PAIR | {"prompt": None}, "'prompt': expected text, found null"),
    "prompt a number": (PAIR | {"prompt": 22}, "'prompt': expected text, found 22"),
    "chosen null": (PAIR | {"chosen": None}, f"'chosen': {NO_TEXT} null"),
    "chosen a number": (PAIR | {"chosen": 4.5}, f"'chosen': {NO_TEXT} 4.5"),
    "chosen empty": (PAIR | {"chosen": ""}, f"'chosen': {NO_TEXT} ''"),
    "rejected true": (PAIR | {"rejected": True}, f"'rejected': {NO_TEXT} True"),
    "rejected a mapping": (
        PAIR | {"rejected": {"a": 1}},
        f"'rejected': {NO_TEXT} {{'a",
    ),
    "rejected empty": (PAIR | {"rejected": ""}, f"'rejected': {NO_TEXT} ''"),
    "both equal": (
        PAIR | {"rejected": " 4"},
        "'rejected': expected another answer than",
    ),
    "a lone surrogate": (
        PAIR | {"chosen": "4\ud83d"},
        "without lone surrogates, found",
    ),
    "annotator a name": (
        PAIR | {"annotator": "ann"},
        "'annotator': expected an integer",
    ),
    "annotator a half": (PAIR | {"annotator": 1.5}, "an integer ≥ -1, found 1.5"),
    "margin infinite": (PAIR | {"margin": "inf"}, "'margin': expected a finite number"),
    "margin NaN in text": (PAIR | {"margin": "nan"}, "a finite number, found 'nan'"),
    "margin null": (PAIR | {"margin": None}, "a finite number, found null"),
    "weight negative": (
        PAIR | {"weight": -1},
        "'weight': expected a finite number ≥ 0",
    ),
    "far too large": (
        PAIR | {"chosen": "4" * LARGEST_ROW},
        "characters are more than 4,",
    ),
    "prompt no list": (
        CHAT | {"prompt": "2 + 2?"},
        "'prompt': expected a list of mess",
    ),
    "chosen no list": (CHAT | {"chosen": "4"}, "'chosen': expected a list of messages"),
    "rejected no list": (CHAT | {"rejected": "5"}, "'rejected': expected a list of me"),
    "no messages": (CHAT | {"chosen": []}, "as the prompt is, found []"),
    "a message of text": (CHAT | {"chosen": ["4"]}, "expected a mapping with role and"),
    "no role": (CHAT | {"chosen": [{"content": "4"}]}, "role and content, found {'con"),
    "an unknown role": (CHAT | {"chosen": told("bot", "4")}, "found 'bot'"),
    "content null": (CHAT | {"chosen": told("assistant", None)}, "text, found null"),
    "content a number": (CHAT | {"chosen": told("assistant", 4)}, "text, found 4"),
    "an empty answer": (
        CHAT | {"chosen": told("assistant", "")},
        "an answer that is no",
    ),
    "no answer": (CHAT | {"rejected": ASK}, "expected a last message of assistant"),
    "an answer asked": (
        CHAT | {"prompt": [*ASK, *FOUR]},
        "a last message of user or t",
    ),
    "answers first": (CHAT | {"prompt": FOUR}, "a first message of system or user"),
    "a question first": (
        CHAT | {"chosen": [*ASK, *FOUR]},
        "'chosen': expected a first",
    ),
    "equal messages": (
        CHAT | {"rejected": FOUR},
        "found the same messages",
    ),
}

KINDS = LINES | {
    kind: (json.dumps(values), reason) for kind, (values, reason) in ROWS.items()
}


def content() -> bytes:
    """A file of good rows, then one row of each kind, a good one after each tenth."""
    lines = [json.dumps(values).encode() for values in GOOD]
    for number, (line, _) in enumerate(KINDS.values()):
        lines.append(line if isinstance(line, bytes) else line.encode())
        if number % 10 == 9:
            lines.append(json.dumps(GOOD[0]).encode())
    return b"\n".join(lines) + b"\n"
