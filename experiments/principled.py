"""The parts of constitutional AI: answers are revised, and pairs of them are judged."""

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.stops import heed_stop
from rlhf_jax.data import write_rows
from rlhf_jax.feedback.assistant import make_ask, sample_completions
from rlhf_jax.feedback.constitution import Constitution
from rlhf_jax.feedback.judge import verdict_preferences
from rlhf_jax.feedback.judging import principle_verdicts
from rlhf_jax.feedback.revision import critique_and_revise
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import Stage

Row = dict[str, Any]


def keep_rows(
    path: Path, make: Callable[..., list[Row]], *args: Any, **options: Any
) -> list[Row]:
    """The rows of a file, which is made where it is not there yet."""
    if not path.exists():
        heed_stop(path)
        write_rows(make(*args, **options), path)
    # Not splitlines: a text may have other ends of lines in it, which JSON keeps.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def answer(
    assistant: Stage, prompts: Sequence[str], sampling: SamplingConfig, seed: int
) -> list[str]:
    """One completion of each prompt."""
    drawn = sample_completions(assistant, prompts, sampling, seed=seed)
    return [completion for _, [completion] in drawn]


def transcripts(
    assistant: Stage,
    constitution: Constitution,
    prompts: Sequence[str],
    *,
    sampling: SamplingConfig,
    replying: SamplingConfig,
    revisions: int,
    rng: random.Random,
) -> list[Row]:
    """What the assistant answers, and how it revises that."""

    def reply(questions: Sequence[str], seed: int) -> list[str]:
        return answer(assistant, questions, replying, seed)

    responses = answer(assistant, prompts, sampling, rng.getrandbits(31))
    revised = critique_and_revise(
        reply, constitution, prompts, responses, revisions=revisions, rng=rng
    )
    return [
        {
            "prompt": prompt,
            "response": response,
            "revisions": [s._asdict() for s in steps],
        }
        for prompt, response, steps in zip(prompts, responses, revised, strict=True)
    ]


def last_responses(rows: Sequence[Row]) -> list[Row]:
    """Demonstrations of what the last revision says, where it says something."""
    found = [(row["prompt"], row["revisions"][-1]["response"]) for row in rows]
    kept = [{"prompt": p, "completion": text} for p, text in found if text]
    if len(kept) < len(found):
        print(f"{len(found) - len(kept)} of {len(found)} revisions are empty: left out")
    return kept


def verdicts(
    policy: Stage,
    judge: Stage,
    constitution: Constitution,
    prompts: Sequence[str],
    *,
    sampling: SamplingConfig,
    rng: random.Random,
) -> list[Row]:
    """What the judge says of two answers of the policy, where they differ."""
    two = dataclasses.replace(sampling, completions=2)
    answered = sample_completions(policy, prompts, two, seed=rng.getrandbits(31))
    pairs = [(prompt, ys) for prompt, ys in answered if ys[0] != ys[1] and all(ys)]
    if rest := len(prompts) - len(pairs):
        print(f"{rest} of {len(prompts)} pairs have equal or empty answers: left out")
    asked, completions = [p for p, _ in pairs], [ys for _, ys in pairs]
    drawn = [rng.choice(constitution.principles) for _ in pairs]
    said = principle_verdicts(make_ask(judge), constitution, drawn, asked, completions)
    return [
        {
            "prompt": prompt,
            "completions": ys,
            "principle": principle.name,
            "question": constitution.preference(principle, prompt, *ys),
            "verdict": verdict.tolist(),
        }
        for prompt, ys, principle, verdict in zip(
            asked, completions, drawn, said, strict=True
        )
    ]


def preferences(rows: Sequence[Row]) -> list[Row]:
    """The better one of each pair as chosen, weighed by how sure the judge was."""
    return [
        {
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "weight": pair.weight,
        }
        for row in rows
        for pair in verdict_preferences(
            row["prompt"], row["completions"], np.array(row["verdict"])
        )
    ]
