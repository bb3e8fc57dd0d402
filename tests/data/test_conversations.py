"""Rows and messages that are conversations, and those that are not."""

from typing import Any

import pytest
from data.chat_templates import (
    ANSWER,
    CHATML,
    DIALOGUE,
    USER,
    decode,
    make_tokenizer,
)

from rlhf_jax.data import DataError, Row
from rlhf_jax.data.chat import (
    tokenize_chat,
    tokenize_chat_prompt,
)
from rlhf_jax.data.conversations import (
    Conversation,
    check_messages,
    conversation_prompts,
    conversations,
)


@pytest.mark.parametrize(
    "messages, message",
    [
        ("Hello", "expected a list of messages, found 'Hello'"),
        (None, "expected a list of messages, found null"),
        ([], r"expected a list of messages, found \[\]"),
        (["Hello"], "message 1: expected a mapping with role and content, found 'He"),
        ([USER, {"role": "user"}], "message 2: expected a mapping with role and con"),
        ([{"content": "a"}], "message 1: expected a mapping with role and content"),
        ([{"role": "user", "content": None}], "1: 'content': expected text, found nul"),
        ([{"role": "user", "content": 3}], "1: 'content': expected text, found 3"),
        ([{"role": 1, "content": "a"}], "message 1: 'role': expected text, found 1"),
        ([USER | {"weight": 0}], "message 1: 'weight': expected text, found 0"),
        (
            [{"role": "user", "content": "a\ud800b"}],
            r"message 1: 'content': expected no lone surrogate, found '\\ud800'",
        ),
        (
            [USER, {"role": "bot", "content": "a"}],
            "2: expected a role of system, user, assistant, tool, found 'bot'",
        ),
        (
            [USER, {"role": "assistant", "content": ""}],
            "message 2: expected an answer that is not empty, found ''",
        ),
        ([ANSWER], "expected a first message of system or user, found 'assistant'"),
    ],
)
def test_what_is_no_conversation(messages, message):
    with pytest.raises(DataError, match=f"^row 7: (message )?{message}") as caught:
        check_messages(messages, "row 7")
    assert str(caught.value).endswith("; correct or remove the row")
    assert "\n" not in str(caught.value)
    tokenizer = make_tokenizer(CHATML)
    for tokenize in (tokenize_chat, tokenize_chat_prompt):
        with pytest.raises(DataError, match=message):
            tokenize(messages, tokenizer, name="row 7")


def test_who_speaks_last():
    tokenizer = make_tokenizer(CHATML)
    check_messages(DIALOGUE[:3], "row 7")  # in a file either is well
    check_messages(DIALOGUE, "row 7")
    message = "^row 7: expected a last message of assistant, found 'user'"
    with pytest.raises(DataError, match=message):
        tokenize_chat(DIALOGUE[:3], tokenizer, name="row 7")
    message = "^row 7: expected a last message of user or tool, found 'assistant'"
    with pytest.raises(DataError, match=message):
        tokenize_chat_prompt(DIALOGUE, tokenizer, name="row 7")
    tool = [*DIALOGUE, {"role": "tool", "content": "3"}]
    text = decode(tokenizer, tokenize_chat_prompt(tool, tokenizer))
    assert text.endswith("<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n")


def test_absent_values_are_left_out():
    # As Parquet gives them, where one row of many has the key.
    template = CHATML.replace("m['role'] +", "m['role'] + m['name'] | default('') +")
    tokenizer = make_tokenizer(template)
    expected = tokenize_chat(DIALOGUE, tokenizer)
    absent: Any = [m | {"name": None} for m in DIALOGUE]
    assert tokenize_chat(absent, tokenizer) == expected
    named = [USER | {"name": "x"}, *DIALOGUE[1:]]
    text = decode(tokenizer, tokenize_chat(named, tokenizer).ids)
    assert text.startswith("<|im_start|>userx\nTwo")


def test_rows_to_conversations(row):
    both = [
        row(messages=DIALOGUE, id=3),
        row(prompt=DIALOGUE[:3], completion=DIALOGUE[3:]),
    ]
    expected = Conversation(tuple(DIALOGUE))
    assert conversations(both) == [expected, expected]
    assert [c.origin for c in conversations(both)] == ["rows.jsonl:7"] * 2
    assert conversations([]) == []


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"text": "a", "prompt": []},
            "expected 'messages', or 'prompt' and 'completion'; the columns are text",
        ),
        ({"messages": DIALOGUE, "prompt": DIALOGUE}, "expected 'messages', or 'prompt"),
        (
            {"prompt": "a", "completion": DIALOGUE[1:2]},
            "column 'prompt': expected a list of messages, found 'a'",
        ),
        (
            {"prompt": DIALOGUE[:1], "completion": []},
            r"column 'completion': expected a list of messages, found \[\]",
        ),
        (
            {"prompt": DIALOGUE[:1], "completion": [{"role": "bot", "content": "a"}]},
            "message 2: expected a role",
        ),
    ],
)
def test_rows_that_are_no_conversations(row, values, message):
    with pytest.raises(DataError, match=f"^rows.jsonl:7: {message}"):
        conversations([row(**values)])


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "asked.jsonl:1: prompt: expected a list of messages, found null"),
        ({"prompt": [USER, ANSWER]}, "expected a last message of user or tool"),
        ({"prompt": "2 + 2?"}, "expected a list of messages"),
    ],
)
def test_rows_that_ask_nothing(values, message):
    with pytest.raises(DataError, match=message):
        conversation_prompts([Row(values, "asked.jsonl", 1)])
