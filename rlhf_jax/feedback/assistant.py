"""A policy as an assistant that is asked: to choose an answer, or to reply."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data import (
    Prompt,
    batches,
    collate_prompts,
    encode_texts,
    tokenize_chat_prompt,
    tokenize_prompts,
)
from rlhf_jax.data.records import TokenIds
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.judge import Ask
from rlhf_jax.models import decode_layout, policy_apply
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.stages import Stage, pad_id
from rlhf_jax.types import ApplyFn, Array, Params, TokenBatch

BATCH = 32  # questions at a time


def answer_logprobs(
    apply_fn: ApplyFn, params: Params, questions: TokenBatch, answers: Array
) -> Array:
    """log P(a | x, a ∈ answers) = z_a − log Σ_b exp z_b, of the token after the last.

    Bai et al. 2022, arXiv:2212.08073, section 4.1: the answers' log-probs, normalised
    over the answers.

    Args:
      apply_fn: the policy.
      params: its parameters.
      questions: [B, T], left-padded, so that the last column is each one's last token.
      answers: [C] int32 token ids.

    Returns:
      [B, C] float32 nats.

    >>> from rlhf_jax.types import ModelOutput
    >>> policy = lambda params, batch: ModelOutput(params[batch.tokens])
    >>> logits = jnp.log(jnp.array([[0.2, 0.6, 0.2], [0.5, 0.25, 0.25]]))
    >>> ones = jnp.ones((1, 2), int)
    >>> questions = TokenBatch(jnp.array([[1, 0]]), ones, ones, ones < 1)
    >>> answers = jnp.array([1, 2])
    >>> jnp.exp(answer_logprobs(policy, logits, questions, answers)).round(2)
    Array([[0.75, 0.25]], dtype=float32)
    """
    logits = apply_fn(params, questions).logits[:, -1].astype(jnp.float32)
    return jax.nn.log_softmax(logits[:, answers], axis=-1)


def make_ask(assistant: Stage, *, batch_size: int = BATCH) -> Ask:
    """The assistant as a function of questions and answers. No reference.

    With a chat template a question is the turn of a user, and the answers begin the
    assistant's, without the space that they may begin with; without one a question is
    the text as it is.

    Args:
      assistant: a policy and its tokenizer.
      batch_size: questions at a time.

    Returns:
      (N questions, C answers) -> [N, C] float32 nats. It raises UserError where an
      answer is not one token, two are the same, or a question does not fit the context.
    """
    choose = jax.jit(functools.partial(answer_logprobs, policy_apply(assistant.model)))
    params, pad = assistant.merged().params, pad_id(assistant.tokenizer)

    def ask(questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        ids = question_ids(assistant, questions, room=0)
        choices = jnp.asarray(_answer_ids(assistant.tokenizer, answers))
        length = max(map(len, ids), default=0)
        collate = functools.partial(collate_prompts, length=length, pad_id=pad)
        found = [np.zeros((0, len(answers)), np.float32)]
        for batch, real in batches([Prompt(x) for x in ids], batch_size, collate):
            said = choose(params, batch, choices)
            found.append(np.asarray(said)[np.asarray(real)])
        return np.concatenate(found)

    return ask


def sample_completions(
    assistant: Stage,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    *,
    seed: int,
    batch_size: int = BATCH,
) -> Iterator[tuple[str, list[str]]]:
    """(prompt, its completions) as they are drawn, some prompts at a time.

    No reference. The same prompts and seed give the same completions, up to the
    rounding that ``batch_size`` changes. With a chat template a prompt is the turn of a
    user.

    Args:
      assistant: that answers.
      prompts: texts.
      sampling: how; ``completions`` of each prompt. The assistant's end tokens end one,
        where no ``stop_ids`` are given.
      seed: of the sampling.
      batch_size: prompts at a time.

    Raises:
      UserError: a prompt and its completion do not fit the context.
    """
    context, budget = assistant.model.max_length, sampling.max_new_tokens
    if context - budget < 2:
        raise UserError(
            f"sampling.max_new_tokens = {budget}: of the policy's context of {context} "
            f"tokens, {context - budget} are left for a prompt"
        )
    pad, count = pad_id(assistant.tokenizer), sampling.completions
    stop_ids = sampling.stop_ids or assistant.stop_ids
    sampling = dataclasses.replace(sampling, stop_ids=stop_ids, pad_id=pad)
    asked = [Prompt(x) for x in question_ids(assistant, prompts, room=budget)]
    width = max((len(prompt.prompt) for prompt in asked), default=0)
    collate = functools.partial(collate_prompts, length=width, pad_id=pad)
    apply_fn, key = policy_apply(assistant.model), jax.random.key(seed)
    sample = jax.jit(functools.partial(generate, apply_fn, config=sampling))
    params, rows = (
        decode_layout(assistant.merged().params),
        np.arange(batch_size, dtype=np.int32),
    )
    for first, (batch, _) in enumerate(batches(asked, batch_size, collate)):
        rollout = sample(params, batch, key=key, rows=rows + first * batch_size)
        drawn = jax.device_get(rollout.batch)
        ids = [row[m].tolist() for row, m in zip(drawn.tokens, drawn.mask, strict=True)]
        texts = assistant.tokenizer.batch_decode(ids, skip_special_tokens=True)
        for i, prompt in enumerate(prompts[first * batch_size :][:batch_size]):
            yield prompt, texts[i * count : (i + 1) * count]


def question_ids(
    assistant: Stage, questions: Sequence[str], *, room: int
) -> list[TokenIds]:
    """Questions as the assistant reads them: a user's turn, or plain text.

    No reference.

    Args:
      assistant: a policy and its tokenizer.
      questions: texts.
      room: tokens of the context to be left for a reply.

    Raises:
      UserError: a question has more tokens than that leaves.
    """
    most, tokenizer = assistant.model.max_length - room, assistant.tokenizer
    if tokenizer.chat_template is None:
        asked = [Prompt(text, f"question {i}") for i, text in enumerate(questions)]
        tokens, _ = tokenize_prompts(asked, tokenizer, max_prompt_length=most)
        return [prompt.prompt for prompt in tokens]
    found = []
    for i, text in enumerate(questions):
        turn = {"role": "user", "content": text}
        ids = tokenize_chat_prompt([turn], tokenizer, name=f"question {i}")
        if len(ids) > most:
            raise UserError(
                f"question {i}: {len(ids)} tokens, the context of "
                f"{assistant.model.max_length} leaves {most}; shorten the templates, "
                "the completions or the replies"
            )
        found.append(ids)
    return found


def _answer_ids(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """One token each, so that one look at the network compares them."""
    chat = tokenizer.chat_template is not None
    texts = [text.lstrip() if chat else text for text in answers]
    ids = encode_texts(tokenizer, texts)
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) != 1:
            raise UserError(
                f"answer {text!r}: {len(tokens)} tokens for this tokenizer, expected "
                "one; choose other answers, such as A and B, with or without a space"
            )
    found = [tokens[0] for tokens in ids]
    if len({*found}) != len(found):
        raise UserError(f"answers {texts}: two have the same token; expected others")
    return found
