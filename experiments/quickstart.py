"""RLHF end to end in minutes on a CPU: TinyReviews → SFT → reward model → PPO.

  python -m experiments.quickstart
  python -m experiments.quickstart --until sft  # later: --resume

The data set is written first: film reviews from a grammar, and rankings of them by
simulated annotators, some of them careless. Because the sentiment of a review is known,
the last table can say what no real data set can: whether the policy became better, or
only its learned reward.

Measured on 2 CPU cores (three seeds): see README.md.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from experiments import cli, policy, reward_model, sft
from experiments.inputs import DataConfig
from experiments.runs import LoraOptions
from rlhf_jax.data import load_tiny_reviews, oracle_accuracy
from rlhf_jax.models.lora import PROJECTIONS
from rlhf_jax.report import write_page, write_report
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.terminal import print_table

Until = Literal["sft", "reward", "ppo"]


@dataclasses.dataclass(frozen=True)
class Config:
    """All stages of RLHF on TinyReviews."""

    run_dir: Path = Path("runs/quickstart")
    """Where the data set and the stages go."""
    until: Until = "ppo"
    """Stops after this stage; --resume goes on."""
    scale: float = 1.0
    """Share of each stage's updates to make; less is a rehearsal, not a result."""
    lora: LoraOptions = LoraOptions()
    """Adapters that PPO trains instead of the whole policy and critic."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of everything but the data."""
    resume: bool = False
    """Go on where an earlier run stopped."""


def main(config: Config) -> None:
    """Runs the stages one after the other, and says what came of it."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    best = best_accuracy(write_data(run_dir / "data"))
    results: dict[str, float] = {"reward/best_accuracy": best}
    for name, stage in stages(config):
        began = time.perf_counter()
        results |= stage()
        print(f"{name}: {time.perf_counter() - began:.0f} s\n")
        if name == config.until:
            break
    save_json(run_dir / "summary.json", results)
    write_report(run_dir)
    page = write_page([run_dir])
    if config.until == "ppo":
        print_results(results)
    print(f"curves, samples, options: {page}")


def write_data(data_dir: Path) -> Path:
    """Builds TinyReviews where it is not there yet."""
    print("TinyReviews: reviews of known sentiment, rankings by simulated annotators")
    for part in ("reviews", "rankings", "prompts"):
        load_tiny_reviews(part, "train", data_dir=data_dir)
    return data_dir


def best_accuracy(data_dir: Path) -> float:
    """How often the truth itself agrees with the held-out judgements."""
    chosen, rejected = [], []
    for row in load_tiny_reviews("rankings", "test", data_dir=data_dir):
        judged = sorted(zip(row.values["ranks"], row.values["golds"], strict=True))
        for i, (_, better) in enumerate(judged):
            chosen += [better] * (len(judged) - i - 1)
            rejected += [worse for _, worse in judged[i + 1 :]]
    return oracle_accuracy(chosen, rejected)


def stages(config: Config) -> Iterator[tuple[Until, Callable[[], dict[str, float]]]]:
    """(name, function that runs it) of each stage, in order."""
    run, percent = config.run_dir, round(100 * config.scale)
    common: dict[str, Any] = {
        "devices": config.devices,
        "seed": config.seed,
        "resume": config.resume,
    }

    def data(part: str, split: str) -> DataConfig:
        return DataConfig(
            path=f"tfds:tiny_reviews/{part}:{split}",
            eval_path=f"tfds:tiny_reviews/{part}:test",
            data_dir=run / "data",
        )

    demonstrations = sft.Config(
        run / "sft", data("reviews", f"train[:{percent}%]"), **common
    )
    yield "sft", functools.partial(sft.main, demonstrations)
    judgements = reward_model.Config(
        run / "reward",
        data("rankings", f"train[:{percent}%]"),
        policy=run / "sft",
        normalize=True,
        **common,
    )
    yield "reward", functools.partial(reward_model.main, judgements)
    episodes = policy.Config.batch_size * max(
        1, round(config.scale * policy.Config.episodes / policy.Config.batch_size)
    )
    prompts = policy.Config(
        run / "ppo",
        policy=run / "sft",
        reward=str(run / "reward"),
        gold="rlhf_jax.data.tiny_reviews:gold_reward",
        data=data("prompts", "train"),
        episodes=episodes,
        **adapters(config.lora),
        **common,
    )
    yield "ppo", functools.partial(policy.main, prompts)


def adapters(lora: LoraOptions) -> dict[str, Any]:
    """Options of PPO with adapters; the defaults where none are asked for.

    They take a larger step. The output projection has one, too: it was trained here in
    a minute, and tells a warm word from a cold one too faintly for the layers alone.
    """
    if lora.rank is None:
        return {}
    lora = dataclasses.replace(lora, targets=lora.targets or PROJECTIONS)
    optim = dataclasses.replace(policy.Config.optim, learning_rate=1.5e-3)
    return {"lora": lora, "optim": optim}


def print_results(results: dict[str, float]) -> None:
    """The table that says whether it worked."""
    r = results
    print_table(
        "RLHF on TinyReviews",
        ["", "found", "expected"],
        [
            [
                "reward model: accuracy on held-out pairs",
                f"{r['reward/eval_accuracy']:.3f}",
                f"best possible {r['reward/best_accuracy']:.3f}",
            ],
            [
                "gold sentiment of samples before PPO",
                f"{r['before/gold']:+.2f}",
                "about 0",
            ],
            [
                "gold sentiment of samples after PPO",
                f"{r['after/gold']:+.2f}",
                "≥ +0.6",
            ],
            [
                "KL from the SFT policy (nats an episode)",
                f"{r['after/kl']:.1f}",
                "≤ 15",
            ],
            [
                "distinct samples of 256 (share)",
                f"{r['after/distinct']:.2f}",
                "≥ 0.5",
            ],
        ],
    )


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
