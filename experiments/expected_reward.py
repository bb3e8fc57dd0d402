"""Expected reward E_x E_{y∼π}[r(x, y)] of a policy, with what it is uncertain by.

  python -m experiments.expected_reward --policy runs/ppo --reward runs/reward
  python -m experiments.expected_reward --sampling.max-new-tokens 4 --exact 0.001

Draws K responses to each of N queries. The interval is over queries, as a sample of
many, and once more for just these; the variance is taken apart, so that one sees
whether more queries or more responses would help. Rewards of 0 and 1 alone are right
and wrong answers, and give pass@k. With --exact the responses that are at least so
probable are listed, and the expectation over them is exact. Written are rollouts.jsonl
(query, response, its probability under the policy, reward), queries.jsonl, summary.json
and a picture: docs/evaluation.md.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli
from experiments.aside import say_put_aside
from experiments.asking import AskConfig, Asked, ask, read_asked
from experiments.ends import ends, known
from experiments.exact import exact_reward
from experiments.expected_report import LABELS, draw, show
from experiments.inputs import DataConfig
from experiments.networks import fit_to_policy, load_reward
from rlhf_jax.data import write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import expected_reward, mean_interval, pass_at_k
from rlhf_jax.rewards import load_reward_function
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_policy


@dataclasses.dataclass(frozen=True)
class Config(AskConfig):
    """The expected reward of a policy."""

    run_dir: Path = Path("runs/expected_reward")
    """Where the rollouts, the numbers and the picture go."""
    policy: Path = Path("runs/sft")
    """The policy: run directory, checkpoint of transformers or hub id."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/prompts:test")
    """Queries, all of which are asked."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=24, completions=4)
    """How responses are drawn; K of them."""
    exact: float | None = None
    """Also lists all responses that are at least so probable, for the exact value."""

    def __post_init__(self):
        if self.exact is not None and not 0 < self.exact <= 1:
            raise UserError(
                f"exact = {self.exact}: expected a probability above 0, 1 at most"
            )


def main(config: Config) -> dict[str, Any]:
    """Asks, estimates, and returns the summary."""
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    policy = load_policy(config.policy, config.pretrained)
    judged_by = config.reward, config.reward_kind, policy, config.pretrained
    reward = load_reward(*judged_by, config.reward_label)
    gold = None if config.gold is None else load_reward_function(config.gold)
    config = fit_to_policy(config, policy, config.prompt_length, config.stop_text)
    asked = read_asked(config, policy.tokenizer, run_dir, held_out=True)
    prompts = [prompt for _, prompt in asked]

    title, key = "expected reward", jax.random.key(config.seed)
    found = ask(config, prompts, policy, reward, gold, key=key, title=title)
    k = config.sampling.completions
    rewards = {name: found.by_prompt(name, k) for name in found.scores}
    summary = {name: summarize(x) for name, x in rewards.items()}
    if config.exact is not None:
        exact = exact_reward(config, prompts, policy, reward, least=config.exact)
        summary["score"]["exact"] = float(exact.value.mean())
        summary["score"]["exact_mass"] = float(exact.mass.mean())
    write_rows(rollouts(found, k), run_dir / "rollouts.jsonl")
    write_rows(queries(found, rewards), run_dir / "queries.jsonl")
    save_json(run_dir / "summary.json", summary)
    show(found, rewards, summary)
    draw(rewards["score"], run_dir / "expected_reward.png", LABELS["score"])
    print(f"rollouts: {run_dir / 'rollouts.jsonl'}  each query: queries.jsonl there")
    say_put_aside(run_dir)
    return summary


def summarize(rewards: np.ndarray) -> dict[str, Any]:
    """What is known of rewards [N, K] as JSON has it; None is not known."""
    found = expected_reward(rewards)
    numbers = {
        **ends(found.sampled),
        "queries_fixed": ends(found.fixed),
        "standard_error": known(found.standard_error),
        "variance_between_queries": known(found.between),
        "variance_within_queries": known(found.within),
        "queries": found.queries,
        "responses": found.responses,
    }
    if np.all(np.isin(rewards, (0, 1))):
        right, k = rewards.sum(axis=1).astype(int), rewards.shape[1]
        tried = [2**i for i in range(k.bit_length()) if 2**i <= k]
        passed = {n: mean_interval(pass_at_k(right, k, n)) for n in tried}
        numbers["pass_at_k"] = {str(n): ends(x) for n, x in passed.items()}
    return numbers


def rollouts(found: Asked, k: int) -> Iterator[dict[str, Any]]:
    """The table of rollouts: a line a response."""
    gold = found.scores.get("gold")
    for i, response in enumerate(found.completions):
        logprob = float(found.logprobs[i])
        yield {
            "query": found.prompts[i // k],
            "response": response,
            "logprob": logprob,  # nats
            "probability": math.exp(logprob),
            "reward": float(found.scores["score"][i]),
            **({} if gold is None else {"gold": float(gold[i])}),
            "ended": bool(found.ended[i]),
        }


def queries(found: Asked, rewards: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The same query by query, with intervals over its responses."""
    for i, query in enumerate(found.prompts):
        names = {"reward" if name == "score" else name: name for name in rewards}
        of = {name: ends(mean_interval(rewards[x][i])) for name, x in names.items()}
        yield {"query": query} | of


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
