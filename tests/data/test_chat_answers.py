"""Compared and labelled answers to conversations, through the chat template.

The oracle is ``tokenizer.apply_chat_template``: its own mask where a template has
marks, and what it writes with and without the answer where it has none.
"""

from typing import Any

import pytest
from data.chat_templates import (
    CHATML,
    DIALOGUE,
    GEMMA,
    LLAMA2,
    LLAMA3,
    MARKED_CHATML,
    MARKED_THINKING,
    PLAIN,
    SYSTEM,
    THINKING,
    WIDE_MARKS,
    ZEPHYR,
    decode,
    make_tokenizer,
)

from rlhf_jax.data import (
    DataError,
    Labeled,
    Preference,
    chat_labels,
    chat_preferences,
    collate_preferences,
    tokenize_chat,
    tokenize_chat_labels,
    tokenize_chat_preferences,
    tokenize_chat_prompt,
    train_tokenizer,
)

ASKED, BETTER = tuple(DIALOGUE[:3]), DIALOGUE[3]
WORSE = {"role": "assistant", "content": "Alien again,\nsorry."}
PAIR = Preference(ASKED, (BETTER,), (WORSE,), origin="pairs.jsonl:1")


def tokenized(tokenizer, pair=PAIR, most=400):
    [row] = tokenize_chat_preferences([pair], tokenizer, max_length=most)
    return row


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA3, LLAMA2, GEMMA, ZEPHYR, PLAIN, THINKING]
)
def test_without_marks_the_answer_is_what_the_template_adds_to_the_prompt(template):
    tokenizer: Any = make_tokenizer(template)
    write = lambda messages, ask: tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=ask
    )
    row, before = tokenized(tokenizer), write([*ASKED], True)
    assert decode(tokenizer, row.prompt) == before
    assert row.prompt == tokenize_chat_prompt(ASKED, tokenizer)  # as it is sampled
    for ids, answer in ((row.chosen, BETTER), (row.rejected, WORSE)):
        added = write([*ASKED, answer], False).removeprefix(before)
        if template != PLAIN:  # there the line break is what ends a turn
            added = added.rstrip()
        assert decode(tokenizer, ids) == added
        assert answer["content"] in added


@pytest.mark.parametrize("template", [MARKED_CHATML, MARKED_THINKING])
def test_with_marks_the_answer_is_the_last_that_transformers_owns(template):
    tokenizer: Any = make_tokenizer(template)
    row = tokenized(tokenizer)
    for ids, answer in ((row.chosen, BETTER), (row.rejected, WORSE)):
        encoded = tokenizer.apply_chat_template(
            [*ASKED, answer], return_dict=True, return_assistant_tokens_mask=True
        )
        mask = encoded["assistant_masks"]
        end = len(mask) - mask[::-1].index(1)
        first = max(i for i in range(end) if not mask[i]) + 1
        assert list(row.prompt + ids) == encoded["input_ids"][:end]
        assert len(row.prompt) == first
        assert 1 in mask[:first]  # the earlier answer: owned there, a prompt here


def test_wide_marks_end_with_the_end_token_too():
    row = tokenized(make_tokenizer(WIDE_MARKS))
    assert row == tokenized(make_tokenizer(CHATML))
    assert decode(make_tokenizer(CHATML), row.chosen) == "Été 🎬<|im_end|>"


@pytest.mark.parametrize("adds_bos", [False, True])
def test_one_bos(adds_bos):
    row = tokenized(make_tokenizer(CHATML, adds_bos=adds_bos))
    assert (row.prompt + row.chosen).count(1) == adds_bos
    assert (row.prompt[0] == 1) == adds_bos


def test_a_mask_owns_the_last_answer_alone():
    tokenizer = make_tokenizer(CHATML)
    row = tokenized(tokenizer)
    batch = collate_preferences([row], length=128, pad_id=0)
    for side, answer in ((batch.chosen, BETTER), (batch.rejected, WORSE)):
        owned = [int(t) for t in side.tokens[0][side.mask[0]]]
        assert decode(tokenizer, owned) == answer["content"] + "<|im_end|>"
        whole = tokenize_chat([*ASKED, answer], tokenizer)
        assert sum(whole.mask) > len(owned)  # SFT owns the earlier answer, too


def test_rows_whole_or_with_their_prompt(row):
    system = [SYSTEM, *ASKED]
    explicit = row(prompt=system, chosen=[BETTER], rejected=[WORSE], weight=0.5)
    whole = row(chosen=[*system, BETTER], rejected=[*system, WORSE], weight=0.5)
    told = row(prompt="Two films?", chosen=[*system, BETTER], rejected=[*system, WORSE])
    expected = Preference(tuple(system), (BETTER,), (WORSE,), weight=0.5)
    for pair in chat_preferences([explicit, whole]):
        assert pair == expected and pair.weight == 0.5
        assert pair.origin == "rows.jsonl:7"
    [pair] = chat_preferences([told])  # UltraFeedback, binarised
    assert (pair.prompt, pair.weight) == (expected.prompt, 1.0)
    text = decode(
        make_tokenizer(CHATML), tokenized(make_tokenizer(CHATML), pair).prompt
    )
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


@pytest.mark.parametrize(
    "values, message",
    [
        (  # the same text by another role
            {
                "chosen": [*ASKED, BETTER],
                "rejected": [ASKED[0] | {"role": "system"}, *ASKED[1:], WORSE],
            },
            "column 'rejected': expected the first messages of chosen",
        ),
        (  # they part at the user's second question
            {
                "chosen": [*ASKED, BETTER],
                "rejected": [*ASKED[:2], ASKED[0], WORSE],
            },
            "column 'chosen': expected one answer after the prompt of 1 messages, "
            r"found 3 messages \(assistant, user, assistant\)",
        ),
        (  # an answer more on one side
            {
                "chosen": [*ASKED, BETTER],
                "rejected": [*ASKED, WORSE, ASKED[2], BETTER],
            },
            "column 'rejected': expected one answer after the prompt of 3 messages",
        ),
        (
            {"prompt": [*ASKED], "chosen": [BETTER], "rejected": [*ASKED, WORSE]},
            "column 'rejected': expected a first message of assistant, found user",
        ),
        ({"chosen": [*ASKED, BETTER], "rejected": [*ASKED, BETTER]}, "the same mess"),
        ({"chosen": [BETTER], "rejected": [WORSE]}, "expected a first message of sys"),
        ({"chosen": [*ASKED], "rejected": [*ASKED, WORSE]}, "expected a last message"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "expected lists of messages"),
        ({"prompt": [*ASKED]}, "expected lists of messages, as the others have"),
        (
            {"prompt": [*ASKED], "chosen": [BETTER], "rejected": "no"},
            "column 'rejected': expected a list of messages",
        ),
    ],
)
def test_rows_that_compare_no_answers(row, values, message):
    with pytest.raises(DataError, match=f"^rows.jsonl:7: .*{message}") as caught:
        chat_preferences([row(**values)])
    assert "\n" not in str(caught.value)


def test_labelled_answers(row):
    [labelled] = chat_labels([row(prompt=[*ASKED], completion=[BETTER], label=True)])
    assert labelled == Labeled(ASKED, (BETTER,), 1)
    tokenizer = make_tokenizer(CHATML)
    [ids] = tokenize_chat_labels([labelled], tokenizer, max_length=400)
    pair = tokenized(tokenizer)
    assert (ids.prompt, ids.completion, ids.label) == (pair.prompt, pair.chosen, 1)
    both = [BETTER, ASKED[0], WORSE]
    with pytest.raises(DataError, match="column 'completion': expected one answer"):
        chat_labels([row(prompt=[*ASKED], completion=both, label=0)])


def test_no_template():
    message = "the tokenizer has no chat template.*; set its chat_template, or give col"
    with pytest.raises(DataError, match=message):
        tokenized(train_tokenizer([], vocab_size=259))


def test_the_length_is_exact():
    tokenizer = make_tokenizer(CHATML)
    row = tokenized(tokenizer)
    most = len(row.prompt) + max(len(row.chosen), len(row.rejected))
    tokenized(tokenizer, most=most)
    message = rf"^pairs.jsonl:1: {most} tokens are more than max_length={most - 1}; ra"
    with pytest.raises(DataError, match=message):
        tokenized(tokenizer, most=most - 1)


@pytest.mark.parametrize(
    "template, message",
    [
        (CHATML, "message 2 spells '<|im_end|>', a special token"),
        (
            "{{ messages | length }}" + CHATML,
            "the chat template rewrites the prompt once it is answered",
        ),
        (
            CHATML.replace("m['content']", "(m['content'] if loop.first else '')")
            .replace("'<|im_start|>' + m['role'] + '\n'", "''")
            .replace("'<|im_end|>' + '\n'", "''")
            .replace("<|im_start|>assistant\n", ""),
            "the chat template gives the assistant's turns no token",
        ),
    ],
)
def test_templates_and_texts_that_do_not_fit(template, message):
    spelled = BETTER | {"content": "a<|im_end|>b"}
    chosen = spelled if "spells" in message else BETTER
    pair = Preference(ASKED[:1], (chosen,), (WORSE,), origin="pairs.jsonl:1")
    with pytest.raises(DataError) as caught:
        tokenized(make_tokenizer(template), pair)
    assert str(caught.value).startswith(f"pairs.jsonl:1: {message}")


def test_a_token_that_holds_the_end_of_the_prompt():
    # "\n\n" is one token: of the header's "\n" and an answer that begins with one.
    tokenizer = train_tokenizer(["\n\n"] * 9, vocab_size=260)
    tokenizer.chat_template = PLAIN.replace("assistant: ", "assistant:\n").replace(
        "': '", "':\n'"
    )
    pair = Preference(ASKED[:1], (WORSE | {"content": "\n\nb"},), (WORSE,))
    with pytest.raises(DataError, match="^example 0: the last token of the prompt is"):
        tokenized(tokenizer, pair)
