"""``python -m rlhf_jax.feedback judge``: preferences of a model instead of people's."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from rlhf_jax.data import read_rows, write_rows
from rlhf_jax.data.columns import check_text, list_column, text_column
from rlhf_jax.data.row import Row
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.assistant import make_ask
from rlhf_jax.feedback.constitution import Constitution, Principle, read_constitution
from rlhf_jax.feedback.judge import (
    Ask,
    first_bias,
    model_verdicts,
    preferred,
    reward_verdicts,
    swap_consistency,
    verdict_preferences,
    verdict_ranking,
)
from rlhf_jax.feedback.rubric import read_rubric, rubric_reward
from rlhf_jax.stages import load_policy
from rlhf_jax.terminal import print_table


@dataclasses.dataclass(frozen=True)
class Config:
    """Preferences of a model, from a question, from principles, or from a rubric."""

    file: tyro.conf.Positional[Path]
    """Rows with prompt and completions."""
    model: Path
    """The judge: run directory, checkpoint of transformers or hub id."""
    out: Path
    """Where preferences go (.jsonl): pairs, weighed by how sure the judge is."""
    question: str | None = None
    """What the judge is asked: which of two answers is better, and in what."""
    constitution: Path | None = None
    """Principles (.toml); one is drawn for each item."""
    rubric: Path | None = None
    """Criteria on a scale (.toml), by which each completion is rated."""
    as_annotator: int | None = None
    """Writes rankings by an annotator of this number instead of pairs, to stand beside
    those of people."""
    seed: int = 0
    """Of the principles that are drawn."""

    def __post_init__(self):
        given = [self.question, self.constitution, self.rubric]
        if sum(x is not None for x in given) != 1:
            raise UserError(
                "--question, --constitution and --rubric: expected one of them"
            )


def main(config: Config) -> list[np.ndarray]:
    """Asks, prints how far positions mattered, and writes what was said.

    No reference.
    """
    rows, prompts, completions = read_items(read_rows(config.file))
    ask = make_ask(load_policy(config.model))
    if config.rubric is not None:
        reward = rubric_reward(ask, read_rubric(config.rubric))
        verdicts = reward_verdicts(reward, prompts, completions)
    else:
        constitution, drawn = _principles(config, len(rows))
        verdicts = principle_verdicts(ask, constitution, drawn, prompts, completions)
    print_verdicts(verdicts)
    written: list[dict[str, Any]] = []
    for row, prompt, texts, verdict in zip(
        rows, prompts, completions, verdicts, strict=True
    ):
        where: dict[str, Any] = {"origin": row.origin}
        if config.as_annotator is None:
            found = verdict_preferences(prompt, texts, verdict, **where)
        else:
            where |= {"annotator": config.as_annotator}
            found = [verdict_ranking(prompt, texts, verdict, **where)]
        written += [dataclasses.asdict(record) for record in found]
    write_rows(written, config.out)
    print(f"{len(written):,} rows: {config.out}")
    return verdicts


def principle_verdicts(
    ask: Ask,
    constitution: Constitution,
    principles: Sequence[Principle],
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
) -> list[np.ndarray]:
    """Verdicts under a principle for each item: see ``model_verdicts``.

    Bai et al. 2022, arXiv:2212.08073, section 4.1.

    Args:
      ask: the model.
      constitution: how it is asked.
      principles: one for each item.
      prompts: one for each item.
      completions: K of each item.

    >>> from rlhf_jax.feedback.constitution import Templates
    >>> ask = lambda questions, answers: np.log([[0.9, 0.1] for _ in questions])
    >>> short = Principle("short", "What is long?", "Shorten it.", "Which is short?")
    >>> [verdict] = principle_verdicts(
    ...     ask, Constitution((short,)), [short], ["2 + 2 ="], [["4", "four"]])
    >>> verdict.shape
    (2, 2)
    """
    return model_verdicts(
        ask,
        completions,
        form=lambda item, first, second: constitution.preference(
            principles[item], prompts[item], first, second
        ),
        answers=constitution.templates.answers,
    )


def print_verdicts(verdicts: Sequence[np.ndarray]) -> None:
    """How many pairs were judged, how firmly, and how far positions mattered.

    No reference.
    """
    pairs = [preferred(v)[np.triu_indices(len(v), 1)] for v in verdicts]
    better = np.concatenate(pairs) if pairs else np.zeros(0)
    sure, agreed = np.maximum(better, 1 - better), swap_consistency(verdicts)
    print_table(
        "The judge",
        ["", "found", "guessing gives"],
        [
            ["items", len(verdicts), ""],
            ["pairs, each asked in both orders", len(better), ""],
            ["both orders name the same one (%)", _percent(agreed), 50],
            ["the first is named more than half by", f"{first_bias(verdicts):+.2f}", 0],
            ["how sure of the better one (%)", _percent(np.mean(sure)), 50],
        ],
    )


def _percent(share: Any) -> str:
    return f"{100 * share:.0f}"


def _principles(config: Config, count: int) -> tuple[Constitution, list[Principle]]:
    """The constitution, or a question as its only principle, and one for each item."""
    if config.constitution is not None:
        constitution = read_constitution(config.constitution)
    else:
        assert config.question is not None  # the config wants one of the three
        constitution = Constitution((Principle("question", "", "", config.question),))
    rng = random.Random(config.seed)
    return constitution, [rng.choice(constitution.principles) for _ in range(count)]


def read_items(
    rows: Sequence[Row],
) -> tuple[list[Row], list[str], list[list[str]]]:
    """(rows, prompts, different completions), where two or more are different.

    No reference. How many rows have no two is printed.

    Raises:
      DataError: a row without a prompt or a list of completions.

    >>> one = {"prompt": "2 + 2 =", "completions": ["4", "5", "4"]}
    >>> read_items([Row(one, "sums.jsonl", 1)])[2]
    [['4', '5']]
    """
    kept, prompts, completions = [], [], []
    for row in rows:
        given = list_column(row, "completions", "a list of 2 or more texts", least=2)
        texts = dict.fromkeys(check_text(row, "completions", text) for text in given)
        prompt = text_column(row, "prompt")
        if len(texts) > 1:
            kept.append(row)
            prompts.append(prompt)
            completions.append([*texts])
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} rows left out: all their completions are equal")
    return kept, prompts, completions
