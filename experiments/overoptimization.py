"""Over-optimisation: a learned reward rises on, the truth rises and falls.

Gao et al. 2022, arXiv:2210.10760, at the scale of TinyReviews.

  python -m experiments.overoptimization

A reader whose taste is known compares answers of a policy. Reward models learn from
more and more of these preferences. Against each policies are trained by PPO, every one
to its end with a KL coefficient of its own, and n answers a prompt are drawn for best
of n. The reader's own reward, gold, is drawn over √KL, means over seeds, with the
curves of `fit_overoptimization`. docs/hacking.md has the picture and the numbers.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import best_of_n, cli, policy, reward_model, sft
from experiments.inputs import DataConfig
from experiments.keeping import keep_compiled
from experiments.loop_round import TINY
from experiments.overoptimization_report import report, trained
from experiments.readers import draw_preferences
from experiments.stops import heed_stop
from rlhf_jax.data import write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import KLConfig

GOLD = "experiments.readers:reader_reward"
HELD_OUT = 500  # preferences


@dataclasses.dataclass(frozen=True)
class Config:
    """Reward models from more and more preferences, optimised farther and farther."""

    run_dir: Path = Path("runs/overoptimization")
    """Where the stages, the table and the picture go."""
    policy: Path | None = None
    """That all begin with and stays the reference; none trains one."""
    preferences: tuple[int, ...] = (100, 300, 1000, 3000)
    """Of each reward model, in ascending order; the larger contain the smaller."""
    epochs: tuple[int, ...] = (20, 15, 8, 5)
    """Of each reward model over its preferences."""
    coefs: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02)
    """KL coefficients, of a policy each: the smaller, the farther it goes."""
    episodes: int = 3_072
    """Of each policy."""
    batch_size: int = 128
    """Episodes an iteration of it."""
    learning_rate: float = 1e-3
    """Of each policy at first, 0 at last."""
    prompts: int = 32
    """Asked for best of n."""
    completions: int = 512
    """n: completions of each."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of preferences, reward models and policies; the first policy has 0."""
    resume: bool = False
    """Go on where an earlier run stopped."""

    def __post_init__(self):
        given = self.preferences
        if len(self.epochs) != len(given):
            raise UserError(
                f"epochs = {self.epochs}: expected one number for each of "
                f"preferences = {given}"
            )
        least = reward_model.Config.batch_size
        if list(given) != sorted(set(given)) or not given or given[0] < least:
            raise UserError(
                f"preferences = {given}: expected ascending numbers from {least} on"
            )


def main(config: Config) -> dict[str, Any]:
    """Trains all, and returns what the report says."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    keep_compiled(run_dir / "compiled")
    shared: dict[str, Any] = {"devices": config.devices, "resume": True}
    began = config.policy
    if began is None:
        began, reviews = run_dir / "sft", tiny_reviews(run_dir, "reviews")
        sft.main(sft.Config(began, reviews, model=TINY, **shared))
    for seed in config.seeds:
        here = run_dir / f"seed{seed}"
        write_preferences(config, began, here, seed)
        for count, epochs in zip(config.preferences, config.epochs, strict=True):
            given = config, began, here / str(count), shared | {"seed": seed}
            learn_reward(epochs, *given[1:])
            optimize(*given)
            draw_best(*given)
    return report(run_dir, config.seeds, config.preferences, config.coefs)


def tiny_reviews(run_dir: Path, part: str) -> DataConfig:
    """A part of the data set, made where it is not there yet."""
    path = f"tfds:tiny_reviews/{part}:"
    data_dir = run_dir / "data"
    return DataConfig(f"{path}train", eval_path=f"{path}test", data_dir=data_dir)


def write_preferences(config: Config, began: Path, here: Path, seed: int) -> None:
    """Those of a seed; the larger files begin as the smaller ones."""
    sizes = {"test": (HELD_OUT,), "train": config.preferences}
    for split, counts in sizes.items():
        if not (here / f"{split}_{counts[-1]}.jsonl").exists():
            pairs = draw_preferences(began, split, counts[-1], seed=seed)
            here.mkdir(parents=True, exist_ok=True)
            for count in counts:
                write_rows(pairs[:count], here / f"{split}_{count}.jsonl")


def learn_reward(epochs: int, began: Path, here: Path, shared: dict[str, Any]) -> None:
    """A reward model of a folder's preferences, normalised on the policy's samples."""
    learned = here.parent / f"train_{here.name}.jsonl"
    held_out = here.parent / f"test_{HELD_OUT}.jsonl"
    reward_model.main(
        reward_model.Config(
            here / "reward",
            DataConfig(str(learned), eval_path=str(held_out)),
            kind="pairwise",
            policy=began,
            normalize=True,
            epochs=epochs,
            optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup=5),
            **shared,
        )
    )


def optimize(config: Config, began: Path, here: Path, shared: dict[str, Any]) -> None:
    """PPO against a reward model, with one KL coefficient after the other."""
    algorithm, optim = policy.Config.algorithm, policy.Config.optim
    for coef in config.coefs:
        policy.main(
            policy.Config(
                here / trained(coef),
                policy=began,
                reward=str(here / "reward"),
                gold=GOLD,
                data=tiny_reviews(config.run_dir, "prompts"),
                episodes=config.episodes,
                batch_size=config.batch_size,
                algorithm=dataclasses.replace(algorithm, kl=KLConfig(coef=coef)),
                optim=dataclasses.replace(optim, learning_rate=config.learning_rate),
                **shared,
            )
        )


def draw_best(config: Config, began: Path, here: Path, shared: dict[str, Any]) -> None:
    """Best of n by a reward model; again if it was not finished."""
    run_dir = here / "best_of_n"
    if (run_dir / "curve.json").exists():
        return
    heed_stop(run_dir)
    best_of_n.main(
        best_of_n.Config(
            run_dir,
            policy=began,
            reward=str(here / "reward"),
            gold=GOLD,
            data=tiny_reviews(config.run_dir, "prompts"),
            prompts=config.prompts,
            sampling=SamplingConfig(24, completions=config.completions),
            batch_size=4,
            devices=shared["devices"],
            seed=shared["seed"],
        )
    )


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
