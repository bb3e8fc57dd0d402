"""Samples of a policy on held-out prompts, before and after training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.pieces import token_kl, token_texts
from experiments.rollouts import Sampled, decode, response_ids
from rlhf_jax.data import write_rows
from rlhf_jax.parallel import unshard
from rlhf_jax.processes import is_first
from rlhf_jax.rewards import RewardFunction, call_reward_function
from rlhf_jax.rundir import save_json
from rlhf_jax.steps import TrainState
from rlhf_jax.terminal import print_table, samples_table
from rlhf_jax.types import Array, TokenBatch

LABELS = {
    "gold": "gold score",
    "reward": "learned reward",
    "kl": "KL from the reference (nats an episode)",
    "distinct": "distinct samples (share)",
    "response_length": "response length (tokens)",
    "ended": "ended by a stop token (share)",
}


class Evaluation(NamedTuple):
    """Samples of a policy on held-out prompts."""

    prompts: list[str]
    completions: list[str]
    scores: np.ndarray
    gold: np.ndarray | None
    metrics: dict[str, float]
    tokens: list[list[str]]  # of each completion; joined they are its text
    kl: list[list[float]] | None  # nats, log π − log π_ref of each of these tokens

    def summary(self) -> dict[str, float]:
        """The numbers that LABELS names."""
        numbers = {} if self.gold is None else {"gold": float(self.gold.mean())}
        numbers["reward"] = float(self.scores.mean())
        if "objective/kl" in self.metrics:  # else there is no reference
            numbers["kl"] = self.metrics["objective/kl"]
        return numbers | {
            "distinct": len(set(self.completions)) / len(self.completions),
            "response_length": self.metrics["rollout/response_length"],
            "ended": self.metrics["rollout/ended"],
        }

    def row(self, i: int) -> dict[str, Any]:
        """One sample, for samples.jsonl."""
        gold = {} if self.gold is None else {"gold": float(self.gold[i])}
        tokens: dict[str, Any] = {"tokens": self.tokens[i]}
        return {
            "completion": self.completions[i],
            "score": float(self.scores[i]),
            **gold,
            **(tokens if self.kl is None else tokens | {"kl": self.kl[i]}),
        }


def evaluate_policy(
    sampled_of: Callable[[Any, TokenBatch, Array], Sampled],
    prompts: TokenBatch,
    key: Array,
    tokenizer: Any,
    gold: RewardFunction | None,
    state: TrainState,
) -> Evaluation:
    """Samples of the policy, the same randomness each time."""
    sampled = sampled_of(state, prompts, key)
    rollout = unshard(sampled.rollout)
    texts = decode(tokenizer, rollout)
    ids = zip(response_ids(rollout), texts[1], strict=True)
    kl = None
    if sampled.compared is not None:
        kl = token_kl(*map(unshard, sampled.compared), mask=rollout.batch.mask)
    return Evaluation(
        *texts,
        scores=np.asarray(unshard(sampled.scores)),
        gold=None if gold is None else call_reward_function(gold, *texts),
        metrics=sampled.metrics.compute(),
        tokens=[token_texts(tokenizer, *of) for of in ids],
        kl=kl,
    )


def report_samples(
    run_dir: Path, before: Evaluation, after: Evaluation
) -> dict[str, float]:
    """Shows samples and numbers before and after; keeps them in the run directory."""
    shown = slice(0, 10)
    samples_table(
        before.prompts[shown],
        before.completions[shown],
        after.completions[shown],
        scores_before=before.scores[shown].tolist(),
        scores_after=after.scores[shown].tolist(),
    )
    numbers = zip(before.summary().items(), after.summary().values(), strict=True)
    print_table(
        f"{len(before.prompts)} samples on held-out prompts",
        ["", "before", "after"],
        [[LABELS[name], then, now] for (name, then), now in numbers],
    )
    rows = (
        {"prompt": prompt, "before": before.row(i), "after": after.row(i)}
        for i, prompt in enumerate(before.prompts)
    )
    if is_first():
        write_rows(rows, run_dir / "samples.jsonl")
    summary = {f"before/{k}": v for k, v in before.summary().items()}
    summary |= {f"after/{k}": v for k, v in after.summary().items()}
    save_json(run_dir / "summary.json", summary)
    return summary
