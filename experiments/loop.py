"""The loop: policy → samples → labels → reward model → PPO → samples again.

Ziegler et al. 2019, arXiv:1909.08593, "online data collection"; Bai et al. 2022,
arXiv:2204.05862, "iterated online RLHF".

  python -m experiments.loop
  python -m experiments.loop --annotators ann ben eve --votes 2 --seeds 0  # real people

PPO moves the policy to where the reward model has seen nothing, so each round asks for
labels of what the current policy says, to prompts that were not asked before. As Bai et
al. do, a new reward model is then trained from the SFT policy on all labels so far, old
and new alike, and PPO starts at the SFT policy again: what an earlier, worse reward
model taught is not carried on, and the KL leash is to where training began.

Labels come from simulated people who see the truth through noise of their own; or, with
--annotators, from real ones: the script writes the completions, says which commands put
them on the labelling page, and stops; the same command with --resume goes on.

What is finished is not made again. Table and picture: table.md, loop.png, docs/loop.md.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments import cli, policy, reward_model
from experiments.inputs import DataConfig
from experiments.keeping import keep, keep_compiled
from experiments.loop_labels import (
    people_s_labels,
    read_pairs,
    simulated_labels,
    waited_for,
    write_pairs,
)
from experiments.loop_report import Result, measure, read_result, report
from experiments.loop_round import PROMPTS, Round, answer, train_sft, write_once
from experiments.simulation import make_crowd
from rlhf_jax.errors import UserError
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import KLConfig, PolicyConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Rounds of samples, labels, reward model and PPO."""

    run_dir: Path = Path("runs/loop")
    """Where a folder a seed and round, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of everything; real people label for one."""
    rounds: int = 3
    """How often people are asked."""
    policy: Path | None = None
    """The SFT policy; none trains one on TinyReviews, for each seed."""
    data: DataConfig = PROMPTS
    """Prompts."""
    prompt_length: int = 12
    """Tokens of a prompt at most."""
    gold: str | None = "rlhf_jax.data.tiny_reviews:gold_reward"
    """The truth, which simulated people see through noise: module:function, or none."""
    prompts: int = 120
    """Prompts a round, whose completions are labelled."""
    sampling: SamplingConfig = SamplingConfig(24, completions=4)
    """How the policy answers them; PPO's episodes are as long."""
    answers: Literal["current", "sft"] = "current"
    """By whom: the current policy; or always the SFT policy, to compare."""
    held_out: float = 0.25
    """Share of a round's prompts whose labels measure, and are not learned from."""
    annotators: tuple[str, ...] = ()
    """Real people, by name, who label on the page; none simulates a crowd."""
    votes: int = 1
    """People who rank an item."""
    crowd: int = 8
    """Simulated people to choose from, some more exact than others."""
    epochs: int = 10
    """Of each reward model: passes over all labels so far."""
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, schedule="cosine", warmup=20)
    """Optimiser of the reward model."""
    episodes: int = 2_560
    """Of PPO, each round."""
    batch_size: int = 128
    """Episodes an iteration of PPO; there must be as many prompts."""
    kl_coef: float = 0.05
    """PPO's leash to the SFT policy."""
    ppo_optim: OptimConfig = OptimConfig(1e-3, schedule="linear", eps=1e-5)
    """Optimiser of PPO."""
    devices: int | None = None
    """Number of devices; none uses all."""
    resume: bool = False
    """Go on where an earlier run stopped."""

    def __post_init__(self):
        people = len(self.annotators) or self.crowd
        rules = [
            ("rounds", self.rounds >= 1, "1 or more"),
            ("held_out", 0 < self.held_out < 1, "a share between 0 and 1"),
            ("votes", 1 <= self.votes <= people, f"at most {people}, 1 at least"),
            ("seeds", not self.annotators or len(self.seeds) == 1, "one with people"),
            ("gold", self.annotators or self.gold, "what simulated people see"),
            ("sampling", self.sampling.completions >= 2, "2 or more completions"),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)}: expected {expected}")


def main(config: Config) -> list[Result]:
    """Plays the rounds that are not finished, and shows all."""
    same = dataclasses.replace(config, seeds=(0,), rounds=1)  # more may be asked for
    run_dir, results = create_run_dir(config.run_dir, same, resume=config.resume), []
    keep_compiled(run_dir / "compiled")
    given = run_dir, config.policy, config.data, config.devices
    for seed in config.seeds:
        for number in range(1, config.rounds + 1):
            if (result := play(config, Round(*given, seed, number))) is None:
                break
            results.append(result)
    return report(results, run_dir)


def play(config: Config, this: Round) -> Result | None:
    """A round, as far as it is not finished; None where people have yet to label."""
    here = this.here
    if config.policy is None:
        keep(this.root / "sft.json", train_sft, this)

    # 1. The policy as it is now answers prompts that it was not asked before.
    who = this.current if config.answers == "current" else this.sft
    asked = who, config.prompts, config.sampling, config.gold
    write_once(here / "completions.jsonl", answer, this, *asked)

    # 2. People rank the answers. What they say of some is held out.
    if config.annotators:
        if not waited_for(here, config.annotators, config.votes):
            return None
        write_once(here / "labels.jsonl", people_s_labels, here)
    else:
        crowd = make_crowd(config.crowd, 0)
        write_once(here / "labels.jsonl", simulated_labels, this, crowd, config.votes)
    count = write_pairs(this, config.held_out)
    fresh, true, learned = read_pairs(here)

    # 3. What the reward model that this policy comes from knows of its answers.
    if (before := this.before) is not None:
        known = read_pairs(before)[-1]
        keep(here / "stale.json", measure, before / "reward", fresh, true, known)

    # 4. A new reward model, from all labels so far; what it knows of the same answers.
    keep(here / "reward.json", train_reward, config, this, len(learned))
    keep(here / "fresh.json", measure, here / "reward", fresh, true, learned)

    # 5. PPO on that reward model.
    keep(here / "ppo.json", train_policy, config, this)
    found = {"seed": this.seed, "round": this.number, "labels": count}
    return found | read_result(here)


def train_reward(config: Config, this: Round, count: int) -> Result:
    """From the SFT policy: mean 0, std 1 there, so that KL weighs the same."""
    asked = reward_model.Config(
        this.here / "reward",
        DataConfig(str(this.here / "learned.jsonl"), str(this.here / "held_out.jsonl")),
        kind="pairwise",
        policy=this.sft,
        optim=config.optim,
        batch_size=min(64, count),
        epochs=config.epochs,
        normalize=True,
        eval_every=10_000,
        **this.shared,
    )
    return reward_model.main(asked)


def train_policy(config: Config, this: Round) -> Result:
    """From the SFT policy, which stays the reference."""
    asked = policy.Config(
        this.here / "ppo",
        policy=this.sft,
        reward=str(this.here / "reward"),
        gold=config.gold,
        data=this.prompts,
        prompt_length=config.prompt_length,
        algorithm=PolicyConfig(
            dataclasses.replace(config.sampling, completions=1),
            kl=KLConfig(coef=config.kl_coef),
        ),
        optim=config.ppo_optim,
        episodes=config.episodes,
        batch_size=config.batch_size,
        **this.shared,
    )
    return policy.main(asked)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
