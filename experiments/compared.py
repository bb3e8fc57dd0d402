"""What `experiments.compare` compares: a row an algorithm, with its numbers.

All begin with the same SFT policy. Those that sample may ask the reward model about
5,120 completions (expert iteration: 10,240); the others are given a quarter of the
rankings, which judge 6,144 completions of the data. Learning rates: found on seed 0.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
    best_of_n,
    distill,
    expert_iteration,
    online_preference,
    policy,
    preference,
)
from experiments.inputs import DataConfig
from experiments.online_preference import SAMPLING
from rlhf_jax.data.tiny_reviews import NUM_COMPLETIONS
from rlhf_jax.optim import OptimConfig
from rlhf_jax.steps import (
    ONLINE_PRESETS,
    POLICY_PRESETS,
    KLConfig,
    PreferenceConfig,
    UnpairedConfig,
)

GOLD = "rlhf_jax.data.tiny_reviews:gold_reward"
RANKINGS = 1_536
BATCH = 64  # pairs, labelled completions, or prompts that a teacher hears answered


class Start(NamedTuple):
    """What all algorithms of a seed begin with."""

    root: Path  # has data, sft and reward; a folder for each algorithm is made there
    seed: int
    scale: float = 1.0  # share of the samples, rankings and updates
    devices: int | None = None

    def data(self, part: str, split: str, held_out: str = "test") -> DataConfig:
        """A part of TinyReviews."""
        where = f"tfds:tiny_reviews/{part}:"
        return DataConfig(where + split, where + held_out, data_dir=self.root / "data")

    def some(self, count: int, *, of: int) -> int:
        """The share of ``count``, in whole batches; one at least."""
        return of * max(1, round(self.scale * count / of))

    def shared(self) -> dict[str, Any]:
        """What every script is asked."""
        policy = self.root / "sft"
        return {"policy": policy, "seed": self.seed, "devices": self.devices}

    def scored(self, split: str = "train") -> dict[str, Any]:
        """What every script is asked whose completions are scored."""
        judges = {"reward": str(self.root / "reward"), "gold": GOLD}
        return self.shared() | judges | {"data": self.data("prompts", split)}


class Row(NamedTuple):
    """An algorithm: a script's main, its config, and what that asks for."""

    family: str
    main: Callable[[Any], dict[str, float]]
    config: Callable[[Start, Path], Any]
    samples: Callable[[Any], int]  # completions that are scored or judged
    measured: Callable[..., Any] = lambda summary: None  # where it trains no policy
    least: float = 0.4  # gold score that is to be gained


def from_samples(family: str, script: Any, rate: float = 1e-3, **options: Any) -> Row:
    """A script whose policy samples what is scored."""
    kind = script.Config

    def config(start: Start, run_dir: Path) -> Any:
        optim = dataclasses.replace(kind.optim, learning_rate=rate)
        episodes = start.some(kind.episodes, of=kind.batch_size)
        given = {"optim": optim, "episodes": episodes} | start.scored()
        return kind(run_dir, **given | options)

    return Row(family, script.main, config, lambda c: c.episodes)


def from_scores(preset: str, rate: float = 1e-3, **changes: Any) -> Row:
    """A row of `POLICY_PRESETS`."""
    alone = preset == "ppo" or preset in policy.WITHOUT_GROUPS
    algorithm = POLICY_PRESETS[preset](policy.ALONE if alone else policy.GROUPS)
    algorithm = dataclasses.replace(algorithm, **changes)
    row = from_samples("scores", policy, rate, algorithm=algorithm)
    scored = 2 if preset == "remax" else 1  # its greedy completions, too
    return row._replace(samples=lambda c: scored * c.episodes)


def from_judgements(
    family: str, algorithm: Any, rate: float = 3e-4, epochs: int = 1, **options: Any
) -> Row:
    """A loss of pairs or labels."""

    def config(start: Start, run_dir: Path) -> preference.Config:
        # A pass makes six pairs or four labels of each ranking.
        count = start.some(RANKINGS, of=BATCH)
        return preference.Config(
            run_dir,
            start.data("rankings", f"train[:{count}]", "test[:50]"),
            preference=algorithm,
            optim=OptimConfig(learning_rate=rate, schedule="cosine", warmup=10),
            batch_size=BATCH,
            epochs=epochs,
            eval_every=1_000,
            **start.shared() | options,
        )

    def samples(config: preference.Config) -> int:
        split = config.data.path.rpartition("[:")[2]
        return NUM_COMPLETIONS * int(split.removesuffix("]"))

    return Row(family, preference.main, config, samples)


def from_teacher(rate: float = 1e-3) -> Row:
    """Distillation: PPO's policy teaches the one that PPO began with."""

    def config(start: Start, run_dir: Path) -> distill.Config:
        return distill.Config(
            run_dir,
            teacher=start.root / "ppo",
            data=start.data("prompts", "train"),
            gold=GOLD,
            optim=OptimConfig(learning_rate=rate),
            updates=start.some(80, of=1),
            batch_size=BATCH,
            **start.shared(),
        )

    return Row("imitation", distill.main, config, lambda c: c.updates * c.batch_size)


def from_chosen() -> Row:
    """The best of 16, for the prompts that all policies are measured with."""

    def config(start: Start, run_dir: Path) -> best_of_n.Config:
        prompts = start.some(256, of=best_of_n.Config.batch_size)
        return best_of_n.Config(run_dir, prompts=prompts, **start.scored("test"))

    samples = lambda c: c.prompts * c.sampling.completions
    measured = lambda s: {"gold": s["gold/n"], "reward": s["score/n"], "kl": s["kl"]}
    return Row("imitation", best_of_n.main, config, samples, measured, least=0.3)


P = PreferenceConfig
pairs = functools.partial(from_judgements, "pairs")
pairs_alone = functools.partial(from_judgements, "pairs, no reference")
labels = functools.partial(from_judgements, "labels")
LOOSE = ("grpo", "dr_grpo", "dapo", "gspo", "reinforce_pp_baseline")
ROWS: dict[str, Row] = {
    **{name: from_scores(name) for name in POLICY_PRESETS},
    "ppo": from_scores("ppo", 3e-4, kl=KLConfig(coef=0.1)),
    # Nothing, or little, holds these: with 1e-3 they end 30 to 60 nats away.
    **{name: from_scores(name, 5e-4) for name in LOOSE},
    **{
        name: from_samples("own pairs", online_preference, online=of(SAMPLING))
        for name, of in ONLINE_PRESETS.items()
    },
    "dpo": pairs(P()),
    "cdpo": pairs(P(label_smoothing=0.1)),
    "dpo_js": pairs(P(divergence="js"), 1e-4),
    "tr_dpo": pairs(P(), ref_sync_every=32),
    "ipo": pairs(P("ipo")),
    "hinge": pairs(P("hinge")),
    "robust": pairs(P("robust", label_smoothing=0.1)),
    "exo": pairs(P("exo")),
    # With the paper's τ = 0.05 its slope at βΔ = 0 is upwards, away from the labels.
    "discopop": pairs(P("discopop", tau=0.2), 1e-4),
    "nca": pairs(P("nca")),
    "sppo": pairs(P("sppo", beta=0.05)),
    "apo_zero": pairs(P("apo_zero")),
    # Alone it lowers the chosen, too, and goes on for ever.
    "apo_down": pairs(P("apo_down", nll_coef=1.0)),
    "aot": pairs(P("aot"), devices=1),  # ranks the pairs of the whole batch
    "aot_unpaired": pairs(P("aot_unpaired"), 1e-4, devices=1),
    "simpo": pairs_alone(P("simpo", beta=2.5)),
    "cpo": pairs_alone(P("cpo", nll_coef=1.0)),
    "slic": pairs_alone(P("cpo_hinge", nll_coef=1.0)),
    "orpo": pairs_alone(P("orpo", beta=1.0, nll_coef=1.0), 1e-3),
    "kto": labels(UnpairedConfig("kto")),
    "bco": labels(UnpairedConfig("bco")),
    "apo_zero_labels": labels(UnpairedConfig("apo_zero")),
    "best_of_16": from_chosen(),
    "expert_iteration": from_samples("imitation", expert_iteration),
    "distill": from_teacher(),
}
