"""Best of n: what a reward is good for without a gradient, and data for fine-tuning.

Nakano et al. 2021 (WebGPT), arXiv:2112.09332; Gao et al. 2022, arXiv:2210.10760.

  python -m experiments.best_of_n --policy runs/sft --reward runs/reward
  python -m experiments.sft --data.path runs/best_of_n/best.jsonl --policy runs/sft

Draws n completions a prompt, scores them, and writes what the best of k is expected to
score, k = 1 … n, beside its distance from the policy, at most log k − (k−1)/k nats
(arXiv:2401.01879). The best completions are demonstrations for `experiments.sft`:
rejection-sampling fine-tuning.
"""

import dataclasses
from pathlib import Path

import jax

from experiments import cli
from experiments.aside import say_put_aside
from experiments.asking import AskConfig, ask, read_asked
from experiments.best_of_k import curve, demonstrations, ends, report
from experiments.networks import fit_to_policy, load_reward
from rlhf_jax.data import write_rows
from rlhf_jax.rewards import load_reward_function
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.stages import load_policy


@dataclasses.dataclass(frozen=True)
class Config(AskConfig):
    """The best of n completions."""

    run_dir: Path = Path("runs/best_of_n")
    """Where the curve, its picture and the best completions go."""
    policy: Path = Path("runs/sft")
    """The policy: run directory, checkpoint of transformers or hub id."""


def main(config: Config) -> dict[str, float]:
    """Draws and writes; returns the ends of the curve."""
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    policy = load_policy(config.policy, config.pretrained)
    judged_by = config.reward, config.reward_kind, policy, config.pretrained
    reward = load_reward(*judged_by, config.reward_label)
    gold = None if config.gold is None else load_reward_function(config.gold)
    config = fit_to_policy(config, policy, config.prompt_length, config.stop_text)
    asked = read_asked(config, policy.tokenizer, run_dir)
    texts, prompts = [text for text, _ in asked], [prompt for _, prompt in asked]

    key = jax.random.key(config.seed)
    found = ask(config, prompts, policy, reward, gold, key=key, title="best of n")
    best = curve(found.scores, config.sampling.completions)
    rows = demonstrations(texts, found.completions, found.scores, found.ended)
    write_rows(rows, run_dir / "best.jsonl")
    report(best, run_dir, len(texts))
    print(f"{run_dir}/best.jsonl: {len(rows)} of {len(texts)} prompts, as --data.path")
    say_put_aside(run_dir)
    return {"kl": best["kl"][-1], "kept": len(rows)} | ends(best)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
