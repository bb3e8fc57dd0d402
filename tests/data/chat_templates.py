"""Chat templates as real models have them, and tokenizers for them."""

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import train_tokenizer
from rlhf_jax.data.chat import (
    ChatTokens,
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
