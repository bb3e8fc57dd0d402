"""Conversations through chat templates as real models have them: masks, <bos>, faults.

What the mask owns is decoded and compared to the answers with their end tokens.
"""

from typing import Any

import numpy as np
import pytest
from data.chat_templates import (
    ANSWER,
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
    USER,
    WIDE_MARKS,
    ZEPHYR,
    decode,
    make_tokenizer,
    owned,
)
from tokenizers import processors

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
    conversation_prompts,
)


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


@pytest.mark.fault(24)
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


@pytest.mark.fault(24)
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


@pytest.mark.fault(24)
@pytest.mark.parametrize("template", [None, {"rag": CHATML, "tool_use": CHATML}])
def test_no_template(template):
    tokenizer = make_tokenizer(template)
    message = "^the tokenizer has no chat template, .*; set its chat_template, or give"
    with pytest.raises(DataError, match=message):
        tokenize_chat(DIALOGUE, tokenizer)
    with pytest.raises(DataError, match=message):
        tokenize_chat_prompt(DIALOGUE[:1], tokenizer)


@pytest.mark.fault(24)
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


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch made') }}",
        "{% include '/etc/passwd' %}",
        "{% set _ = messages.append({}) %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([], vocab_size=259)
    tokenizer.chat_template = template
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="rows.jsonl:1: the chat template "):
        tokenize_chat(turns, tokenizer, name="rows.jsonl:1")
    assert not [*tmp_path.iterdir()]
