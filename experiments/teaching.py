"""What distillation needs beside a policy: a teacher, answered prompts, a report."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.inputs import DEMONSTRATIONS, Prompts
from experiments.reading import DataConfig, read_data, tokenize_data
from experiments.rollouts import decode
from experiments.samples import LABELS
from rlhf_jax.data import (
    Demonstration,
    Prompt,
    collate_demonstrations,
    collate_prompts,
    tokenize_demonstrations,
    tokenize_prompts,
    write_rows,
)
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import unshard
from rlhf_jax.rewards import RewardFunction, call_reward_function
from rlhf_jax.rundir import save_json
from rlhf_jax.stages import PretrainedConfig, Stage, load_stage, pad_id
from rlhf_jax.steps import TrainState
from rlhf_jax.terminal import print_table
from rlhf_jax.types import Array, Metrics, Params, Rollout, TokenBatch

TITLES = LABELS | {"kl": "KL from the teacher (nats a response)"}
_OF_TEXT = dict.fromkeys(DEMONSTRATIONS, DEMONSTRATIONS["text"])


def load_teacher(path: Path, student: Stage, pretrained: PretrainedConfig) -> Stage:
    """The policy that --teacher names, which reads the student's tokens.

    Raises:
      UserError: there is none, or its tokenizer is another one.
    """
    teacher = load_stage(
        path, "policy", option="--teacher", pretrained=pretrained
    ).merged()
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise UserError(
            f"--teacher {path}: its tokenizer is not the student's; a distribution is "
            "over tokens, so that both must have the same: give such a pair"
        )
    return teacher


def read_answered(
    config: DataConfig, stage: Stage, *, prompt_length: int, run_dir: Path, seed: int
) -> tuple[Prompts, Callable[[list[Any]], TokenBatch]]:
    """Prompts that have completions: (prompts, what makes a batch of both).

    Args:
      config: where they come from; rows as those of `experiments.sft`.
      stage: the student.
      prompt_length: most tokens of a prompt; those of a row are the network's context.
      run_dir: where the rows are put that cannot be used.
      seed: of what is held out.
    """
    tokenizer, cut = stage.tokenizer, config.too_long
    most = stage.model.max_length

    def tokenize(texts: list[Any]) -> list[Demonstration]:
        asked = [Prompt(text.prompt, text.origin) for text in texts]
        prompts, _ = tokenize_prompts(
            asked, tokenizer, max_prompt_length=prompt_length, too_long=cut
        )
        answers, _ = tokenize_demonstrations(
            texts, tokenizer, max_length=most, too_long=cut
        )
        return [
            dataclasses.replace(
                answer, prompt=min(prompt.prompt, answer.prompt, key=len)
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    texts = read_data(config, _OF_TEXT, run_dir=run_dir, seed=seed)
    learned, held_out = tokenize_data(config, texts, tokenize)
    pad = pad_id(tokenizer)
    prompts = Prompts(
        learned,
        held_out,
        functools.partial(collate_prompts, length=prompt_length, pad_id=pad),
    )
    width = max(len(e.prompt + e.completion) for e in learned)
    answered = functools.partial(collate_demonstrations, length=width, pad_id=pad)
    return prompts, answered


class Evaluation(NamedTuple):
    """What a student answers to held-out prompts, and how far from its teacher."""

    prompts: list[str]
    completions: list[str]
    summary: dict[str, float]  # the numbers that TITLES names


def evaluate_student(
    sample: Callable[[Params, TokenBatch, Array], Rollout],
    compare: Callable[[TrainState, Rollout], Metrics],
    prompts: TokenBatch,
    key: Array,
    tokenizer: Any,
    gold: RewardFunction | None,
    state: TrainState,
) -> Evaluation:
    """Samples of the student, the same randomness each time."""
    rollout = sample(state.params, prompts, key)
    whole, found = unshard(rollout), compare(state, rollout).compute()
    texts = decode(tokenizer, whole)
    summary = {"kl": found["distillation/kl"]}
    if gold is not None:
        summary["gold"] = float(call_reward_function(gold, *texts).mean())
    summary |= {
        "distinct": len(set(texts[1])) / len(texts[1]),
        "response_length": float(whole.batch.mask.sum(axis=1).mean()),
        "ended": float(1 - whole.truncated.mean()),
    }
    return Evaluation(*texts, summary)


def report_student(
    run_dir: Path, before: Evaluation, after: Evaluation
) -> dict[str, float]:
    """Shows the numbers before and after; keeps them and the samples."""
    print_table(
        f"{len(before.prompts)} samples on held-out prompts",
        ["", "before", "after"],
        [
            [TITLES[name], then, after.summary[name]]
            for name, then in before.summary.items()
        ],
    )
    texts = zip(before.prompts, before.completions, after.completions, strict=True)
    rows = ({"prompt": x, "before": then, "after": now} for x, then, now in texts)
    write_rows(rows, run_dir / "samples.jsonl")
    summary = {f"before/{k}": v for k, v in before.summary.items()}
    summary |= {f"after/{k}": v for k, v in after.summary.items()}
    save_json(run_dir / "summary.json", summary)
    return summary
