"""What a policy answers, before people look at it."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import checkpoint
from rlhf_jax.data import (
    Prompt,
    batches,
    collate_prompts,
    load_tokenizer,
    tokenize_prompts,
)
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig, decode_layout, policy_apply
from rlhf_jax.models.hf import load_pretrained, resolve
from rlhf_jax.models.lora import LoraConfig, merge
from rlhf_jax.rundir import load_json
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.types import Params

BATCH = 16  # prompts at a time


class Policy(NamedTuple):
    """A network that answers."""

    model: TransformerConfig
    params: Params
    tokenizer: Any
    stop_ids: tuple[int, ...]


def load_policy(path: Path) -> Policy:
    """The last checkpoint of a run directory, or one of transformers. No reference.

    Args:
      path: what a script of ``experiments`` left, adapters included; or a folder of
        transformers, or a hub id.

    Raises:
      UserError: neither of these, or a reward model.
    """
    if not (path / "model.json").is_file():
        return _load_transformers(path)
    saved = load_json(path / "model.json")
    if saved["kind"] != "policy":
        raise UserError(
            f"--policy {path}: holds a {saved['kind']} model, expected a policy; give "
            "the run directory of another stage"
        )
    params = checkpoint.restore_params(path / "checkpoints", saved["params_path"])
    params.pop("value_head", None)  # a critic on the policy's trunk is not the policy
    tokenizer: Any = load_tokenizer(path / "tokenizer")
    if saved["lora"] is not None:
        below = (path.resolve() / saved["base"]).resolve()
        base = load_policy(below if below.is_dir() else Path(saved["base"]))
        targets = saved["lora"]["targets"]
        config = saved["lora"] | {"targets": targets and tuple(targets)}
        params = merge(base.params, params, LoraConfig(**config))
    return Policy(
        TransformerConfig.from_json(saved["model"]),
        params,
        tokenizer,
        tuple(saved["stop_ids"] or [tokenizer.eos_token_id]),
    )


def _load_transformers(path: Path) -> Policy:
    try:
        folder = resolve(str(path))
        found = load_pretrained(folder)
    except UserError as error:
        raise UserError(
            f"--policy {path}: neither the run directory of a policy (no model.json) "
            f"nor a checkpoint of transformers: {error}"
        ) from error
    tokenizer: Any = load_tokenizer(folder)
    file = folder / "generation_config.json"
    more: Any = load_json(file).get("eos_token_id") if file.is_file() else None
    more = [more] if isinstance(more, int) else more or []
    stop_ids = tuple(dict.fromkeys([tokenizer.eos_token_id, *more]))
    return Policy(found.config, found.params, tokenizer, stop_ids)


def sample_completions(
    policy: Policy, prompts: Sequence[str], sampling: SamplingConfig, *, seed: int
) -> Iterator[tuple[str, list[str]]]:
    """(prompt, its completions) as they are drawn, some prompts at a time.

    No reference. The same prompts and seed give the same completions.

    Args:
      policy: that answers.
      prompts: texts.
      sampling: how; ``completions`` of each prompt. The policy's end tokens end one,
        where no ``stop_ids`` are given.
      seed: of the sampling.

    Raises:
      UserError: a prompt and its completion do not fit the policy's context.
    """
    tokenizer, count = policy.tokenizer, sampling.completions
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    stop_ids = sampling.stop_ids or policy.stop_ids
    sampling = dataclasses.replace(sampling, stop_ids=stop_ids, pad_id=pad)
    room = policy.model.max_length - sampling.max_new_tokens
    if room < 2:
        raise UserError(
            f"sampling.max_new_tokens = {sampling.max_new_tokens}: of the policy's "
            f"context of {policy.model.max_length} tokens, {room} are left for a prompt"
        )
    asked = [Prompt(text) for text in prompts]
    tokens, _ = tokenize_prompts(asked, tokenizer, max_prompt_length=room)
    width = max(len(prompt.prompt) for prompt in tokens)
    collate = functools.partial(collate_prompts, length=width, pad_id=pad)
    apply_fn, key = policy_apply(policy.model), jax.random.key(seed)
    sample = jax.jit(functools.partial(generate, apply_fn, config=sampling))
    params, rows = decode_layout(policy.params), np.arange(BATCH, dtype=np.int32)
    for first, (batch, _) in enumerate(batches(tokens, BATCH, collate)):
        rollout = sample(params, batch, key=key, rows=rows + first * BATCH)
        drawn = jax.device_get(rollout.batch)
        ids = [row[m].tolist() for row, m in zip(drawn.tokens, drawn.mask, strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for i, prompt in enumerate(prompts[first * BATCH :][:BATCH]):
            yield prompt, texts[i * count : (i + 1) * count]
