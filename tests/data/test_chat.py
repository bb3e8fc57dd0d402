"""Conversations through chat templates as real models have them: masks, <bos>, faults.

What the mask owns is decoded and compared to the answers with their end tokens.
"""

from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import DataError, Row, train_tokenizer
from rlhf_jax.data.chat import (
    ChatTokens,
    collate_chat,
    tokenize_chat,
    tokenize_chat_prompt,
    tokenize_conversation_prompts,
    tokenize_conversations,
)
from rlhf_jax.data.conversations import (
    Conversation,
    check_messages,
    conversation_prompts,
    conversations,
)

SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUE = [
    {"role": "user", "content": "Two  films?"},
    {"role": "assistant", "content": "Alien,\n  Brazil."},
    {"role": "user", "content": "One more — é?"},
    {"role": "assistant", "content": "Été 🎬"},
]

USER, ANSWER = DIALOGUE[:2]

# After the templates of Qwen2.5, Llama 3, Llama 2, Gemma 2 and Zephyr.
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate\nuser/assistant/…') }}"
    "{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n"
    "{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
    "{% endif %}\n{% endfor %}"
)
MARKED_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The newline is marked as well.
WIDE_MARKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{%- generation -%}{{ m['content'] + '<|im_end|>\n' }}{%- endgeneration -%}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
# As Qwen3's: only the last answer has a (here: empty) thought before it.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}"
    "{% if loop.last %}<think></think>{% endif %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip


def make_tokenizer(template, *, adds_bos=False, has_bos=True, **kwargs):
    """Trained on the dialogue, so that tokens are longer than bytes."""
    texts = [m["content"] for m in [SYSTEM, *DIALOGUE]] * 3
    backend = train_tokenizer(texts, vocab_size=340).backend_tokenizer
    backend.add_special_tokens(CONTROL)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    if has_bos:
        kwargs["bos_token"] = "<bos>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **kwargs,
    )


def decode(tokenizer, ids) -> str:
    return str(tokenizer.decode(list(ids)))


def owned(tokenizer, chat: ChatTokens) -> list[str]:
    """The text of each run of tokens in the mask."""
    assert len(chat.mask) == len(chat.ids)
    runs, before = [], False
    for token, mine in zip(chat.ids, chat.mask, strict=True):
        if mine and not before:
            runs.append([])
        if mine:
            runs[-1].append(token)
        before = mine
    return [decode(tokenizer, run) for run in runs]


@pytest.mark.parametrize(
    "template, text, answers",
    [
        (
            CHATML,
            "<|im_start|>user\nTwo  films?<|im_end|>\n"
            "<|im_start|>assistant\nAlien,\n  Brazil.<|im_end|>\n"
            "<|im_start|>user\nOne more — é?<|im_end|>\n"
            "<|im_start|>assistant\nÉté 🎬<|im_end|>\n",
            ["Alien,\n  Brazil.<|im_end|>", "Été 🎬<|im_end|>"],
        ),
        (
            LLAMA3,
            "<bos><|start_header_id|>user<|end_header_id|>\n\nTwo  films?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
            "Alien,\n  Brazil.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nOne more — é?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nÉté 🎬<|eot_id|>",
            ["Alien,\n  Brazil.<|eot_id|>", "Été 🎬<|eot_id|>"],
        ),
        (  # a <bos> before every user's turn: only at the beginning may none be doubled
            LLAMA2,
            "<bos>[INST] Two  films? [/INST] Alien,\n  Brazil. <eos>"
            "<bos>[INST] One more — é? [/INST] Été 🎬 <eos>",
            [" Alien,\n  Brazil. <eos>", " Été 🎬 <eos>"],
        ),
        (
            GEMMA,
            "<bos><start_of_turn>user\nTwo  films?<end_of_turn>\n"
            "<start_of_turn>model\nAlien,\n  Brazil.<end_of_turn>\n"
            "<start_of_turn>user\nOne more — é?<end_of_turn>\n"
            "<start_of_turn>model\nÉté 🎬<end_of_turn>\n",
            ["Alien,\n  Brazil.<end_of_turn>", "Été 🎬<end_of_turn>"],
        ),
        (  # the prompt ends with "<|assistant|>\n", the newline after its if-block
            ZEPHYR,
            "<|user|>\nTwo  films?<eos>\n<|assistant|>\nAlien,\n  Brazil.<eos>\n"
            "<|user|>\nOne more — é?<eos>\n<|assistant|>\nÉté 🎬<eos>\n",
            ["Alien,\n  Brazil.<eos>", "Été 🎬<eos>"],
        ),
        (  # no end token: the newline is all that ends a turn
            PLAIN,
            "user: Two  films?\nassistant: Alien,\n  Brazil.\n"
            "user: One more — é?\nassistant: Été 🎬\n",
            ["Alien,\n  Brazil.\n", "Été 🎬\n"],
        ),
    ],
)
def test_the_mask_owns_the_answers_and_their_end_tokens(template, text, answers):
    tokenizer = make_tokenizer(template)
    chat = tokenize_chat(DIALOGUE, tokenizer)
    assert decode(tokenizer, chat.ids) == text
    assert owned(tokenizer, chat) == answers
    # The answers end where a sampler must stop, and begin where it must start.
    prompt = tokenize_chat_prompt(DIALOGUE[:3], tokenizer)
    assert chat.ids[: len(prompt)] == prompt
    assert chat.mask[len(prompt)] and not chat.mask[len(prompt) - 1]


def test_a_system_turn_is_not_owned():
    tokenizer = make_tokenizer(CHATML)
    chat = tokenize_chat([SYSTEM, *DIALOGUE[:2]], tokenizer)
    assert decode(tokenizer, chat.ids).startswith("<|im_start|>system\nBe brief.")
    assert owned(tokenizer, chat) == ["Alien,\n  Brazil.<|im_end|>"]


@pytest.mark.parametrize("marks", [MARKED_CHATML, WIDE_MARKS])
def test_marks_and_prefixes_give_the_same_mask(marks):
    messages = [SYSTEM, *DIALOGUE, {"role": "tool", "content": "3"}, DIALOGUE[1]]
    expected = tokenize_chat(messages, make_tokenizer(CHATML))
    assert sum(expected.mask) == 15
    assert tokenize_chat(messages, make_tokenizer(marks)) == expected


def test_marks_as_transformers_reads_them():
    tokenizer = make_tokenizer(MARKED_CHATML)
    encoded: Any = tokenizer.apply_chat_template(
        DIALOGUE, return_dict=True, return_assistant_tokens_mask=True
    )
    chat = tokenize_chat(DIALOGUE, tokenizer)
    assert list(chat.ids) == encoded["input_ids"]
    assert [int(mine) for mine in chat.mask] == encoded["assistant_masks"]


def test_marks_tell_the_turns_of_a_template_that_rewrites_them():
    tokenizer = make_tokenizer(MARKED_THINKING)
    answers = ["Alien,\n  Brazil.<|im_end|>", "<think></think>Été 🎬<|im_end|>"]
    assert owned(tokenizer, tokenize_chat(DIALOGUE, tokenizer)) == answers


def test_a_template_that_trims():
    tokenizer = make_tokenizer(GEMMA)
    loose = [m | {"content": f" \n{m['content']}  "} for m in DIALOGUE]
    assert tokenize_chat(loose, tokenizer) == tokenize_chat(DIALOGUE, tokenizer)


def test_a_token_belongs_to_where_it_begins():
    # "\n\n" is one token. The first answer is "\n\nb" between a header that ends in
    # "\n" and "\n" + "\n\n": of the three newlines before and after b the first two
    # are one token, which begins in the header and in the answer.
    tokenizer = train_tokenizer(["\n\n"] * 9, vocab_size=260)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '\n\n' + m.role + '\n' + m.content + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\n\nassistant\n' }}{% endif %}"
    )
    messages = [USER, {"role": "assistant", "content": "\n\nb"}, *DIALOGUE[:2]]
    chat = tokenize_chat(messages, tokenizer)
    assert owned(tokenizer, chat) == ["\nb\n\n", "Alien,\n  Brazil.\n"]


def test_offsets_without_white_space():
    # Llama 3's post-processor trims white space from offsets: a token of spaces only
    # is left with none, in a header, in an answer and at its beginning.
    tokenizer = train_tokenizer([], vocab_size=259)
    tokenizer.chat_template = PLAIN.replace("'\n'", "eos_token")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    messages = [DIALOGUE[0], {"role": "assistant", "content": " a  b "}, *DIALOGUE[2:]]
    answers = [" a  b <eos>", "Été 🎬<eos>"]
    assert owned(tokenizer, tokenize_chat(messages, tokenizer)) == answers


@pytest.mark.parametrize("template", [CHATML, GEMMA, MARKED_CHATML])
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("has_bos", [False, True])
def test_exactly_one_bos(template, adds_bos, has_bos):
    expected = int(has_bos and (adds_bos or template is GEMMA))
    if not has_bos:
        template = template.replace("{{ bos_token }}", "")
    tokenizer = make_tokenizer(template, adds_bos=adds_bos, has_bos=has_bos)
    assert (tokenizer("a")["input_ids"][0] == 1) == adds_bos  # as it is named
    chat = tokenize_chat(DIALOGUE, tokenizer)
    prompt = tokenize_chat_prompt(DIALOGUE[:1], tokenizer)
    for ids in (chat.ids, prompt):
        assert ids.count(1) == expected
        assert (ids[0] == 1) == bool(expected)
    end = "<end_of_turn>" if "end_of_turn" in template else "<|im_end|>"
    answers = ["Alien,\n  Brazil." + end, "Été 🎬" + end]
    assert owned(tokenizer, chat) == answers


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_template_that_writes_bos_twice(adds_bos):
    tokenizer = make_tokenizer("{{ bos_token }}" + GEMMA, adds_bos=adds_bos)
    message = "^row 7: the chat template begins with '<bos>' twice; remove one"
    with pytest.raises(DataError, match=message):
        tokenize_chat(DIALOGUE, tokenizer, name="row 7")
    with pytest.raises(DataError, match=message):
        tokenize_chat_prompt(DIALOGUE[:1], tokenizer, name="row 7")


@pytest.mark.parametrize("spelled", ["<|im_end|>", "<eos>", "<bos>"])
def test_data_cannot_spell_a_special_token(spelled):
    tokenizer = make_tokenizer(CHATML)
    for index in range(3):
        messages = [dict(m) for m in DIALOGUE]
        messages[index]["content"] += f"x{spelled}y"
        message = rf"^row 7: message {index + 1} spells '{spelled}', a special token"
        with pytest.raises(DataError, match=message.replace("|", r"\|")):
            tokenize_chat(messages, tokenizer, name="row 7")
    messages = [{"role": "user", "name": spelled, "content": "?"}]
    with pytest.raises(DataError, match="^the conversation: message 1 spells"):
        tokenize_chat_prompt(messages, tokenizer)


def test_data_may_spell_other_added_tokens():
    # Thoughts are data, and a special token of white space is white space.
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_tokens(["\n\n"], special_tokens=True)
    messages = [USER, {"role": "assistant", "content": "<think>a\n\nb"}]
    chat = tokenize_chat(messages, tokenizer)
    assert owned(tokenizer, chat) == ["<think>a\n\nb<|im_end|>"]


def test_a_tokenizer_that_splits_special_tokens():
    splits = make_tokenizer(CHATML, split_special_tokens=True)
    assert len(splits("<|im_end|>")["input_ids"]) > 1  # as it is named
    expected = tokenize_chat(DIALOGUE, make_tokenizer(CHATML))
    assert tokenize_chat(DIALOGUE, splits) == expected


@pytest.mark.parametrize("template", [None, {"rag": CHATML, "tool_use": CHATML}])
def test_no_template(template):
    tokenizer = make_tokenizer(template)
    message = "^the tokenizer has no chat template, .*; set its chat_template, or give"
    with pytest.raises(DataError, match=message):
        tokenize_chat(DIALOGUE, tokenizer)
    with pytest.raises(DataError, match=message):
        tokenize_chat_prompt(DIALOGUE[:1], tokenizer)


def test_templates_that_refuse():
    template = r"^row 7: the chat template refuses the conversation \({}\); correct the"
    gemma = template.format("System role not supported")
    with pytest.raises(DataError, match=gemma):
        tokenize_chat([SYSTEM, *DIALOGUE], make_tokenizer(GEMMA), name="row 7")
    alternate = template.format("Conversation roles must alternate user/assistant/…")
    with pytest.raises(DataError, match=alternate):
        tokenize_chat([USER, *DIALOGUE], make_tokenizer(LLAMA2), name="row 7")
    broken = make_tokenizer("{% for m in messages %}{{ m.content }}")
    with pytest.raises(
        DataError, match=template.format("Unexpected end of template.*")
    ):
        tokenize_chat_prompt(DIALOGUE[:1], broken, name="row 7")


def test_a_template_that_rewrites_earlier_turns():
    message = "^row 7: message 2: the chat template rewrites earlier text .* mark the"
    with pytest.raises(DataError, match=message):
        tokenize_chat(DIALOGUE, make_tokenizer(THINKING), name="row 7")
    tokenizer = make_tokenizer(THINKING)
    answer = ["<think></think>Alien,\n  Brazil.<|im_end|>"]
    assert owned(tokenizer, tokenize_chat(DIALOGUE[:2], tokenizer)) == answer


def test_a_header_that_the_conversation_does_not_have():
    # As DeepSeek R1's: the prompt opens a thought, the data has none.
    opened = CHATML.replace("assistant\n' }}", "assistant\n<think>' }}")
    with pytest.raises(DataError, match="message 2: the chat template rewrites"):
        tokenize_chat(DIALOGUE, make_tokenizer(opened))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% generation %}{% endgeneration %}",
    ],
)
def test_a_template_that_leaves_no_answer(template):
    with pytest.raises(DataError, match="^row 7: .* gives the assistant's turns no"):
        tokenize_chat(DIALOGUE, make_tokenizer(template), name="row 7")


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


def test_the_limit_is_exact():
    tokenizer = make_tokenizer(CHATML)
    long, short = Conversation(tuple(DIALOGUE)), Conversation((USER, ANSWER))
    expected = [tokenize_chat(c.messages, tokenizer) for c in (short, long)]
    length = len(expected[1].ids)
    rows = tokenize_conversations([short, long], tokenizer, max_length=length)
    assert rows == expected
    message = (
        f"^conversation 1: {length} tokens are more than max_length={length - 1}; raise"
    )
    with pytest.raises(DataError, match=message):
        tokenize_conversations([short, long], tokenizer, max_length=length - 1)
    named = Conversation(tuple(DIALOGUE), "chats.jsonl:3")
    with pytest.raises(DataError, match=f"^chats.jsonl:3: {length} tokens are more"):
        tokenize_conversations([named], tokenizer, max_length=length - 1)


def test_collate_by_hand():
    # pad = EOS = 2. Row 0 has two answers. Row 1 owns its column 0, which is not a
    # prediction and so leaves the mask.
    rows = [
        ChatTokens((1, 7, 2, 8, 9, 2), (False, True, True, False, False, True)),
        ChatTokens((5, 2), (True, True)),
    ]
    batch = collate_chat(rows, length=7, pad_id=2)
    assert np.asarray(batch.tokens).tolist() == [
        [1, 7, 2, 8, 9, 2, 2],
        [5, 2, 2, 2, 2, 2, 2],
    ]
    assert np.asarray(batch.mask).astype(int).tolist() == [
        [0, 1, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0],
    ]
    assert np.asarray(batch.segment_ids).tolist() == [
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 0],
    ]
    assert np.asarray(batch.positions).tolist() == [
        [0, 1, 2, 3, 4, 5, 0],
        [0, 1, 0, 0, 0, 0, 0],
    ]
    for name, dtype in (("tokens", np.int32), ("mask", np.bool_)):
        array = getattr(batch, name)
        assert type(array) is np.ndarray and array.dtype == dtype


def test_collate_what_does_not_fit():
    row = ChatTokens((1, 7, 2), (False, True, True))
    collate_chat([row], length=3, pad_id=0)
    with pytest.raises(DataError, match="row 0 of the batch has 3 tokens, more than"):
        collate_chat([row], length=2, pad_id=0)


def test_prompts_to_answer():
    """A prompt is the beginning of the conversation that answers it."""
    tokenizer = make_tokenizer(CHATML)
    rows = [Row({"prompt": [SYSTEM, USER], "id": 7}, "asked.jsonl", 1)]
    [asked] = conversation_prompts(rows)
    assert asked.messages == (SYSTEM, USER)
    [row] = tokenize_conversation_prompts([asked], tokenizer, max_prompt_length=99)
    whole = tokenize_chat([SYSTEM, USER, ANSWER], tokenizer)
    assert row.origin == "asked.jsonl:1"
    assert row.prompt == whole.ids[: len(row.prompt)]
    assert not any(whole.mask[: len(row.prompt)]) and whole.mask[len(row.prompt)]
    short = len(row.prompt) - 1
    with pytest.raises(DataError, match=rf"asked.jsonl:1: {short + 1} tokens are more"):
        tokenize_conversation_prompts([asked], tokenizer, max_prompt_length=short)


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
