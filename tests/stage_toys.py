"""Toy-sized stages: two updates each, and later ones start from earlier ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments import (
    best_of_n,
    distill,
    expert_iteration,
    online_preference,
    policy,
    preference,
    reward_model,
    sft,
)
from experiments.inputs import DataConfig
from experiments.online import OnlineConfig
from rlhf_jax.data import load_tiny_reviews
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import ONLINE_PRESETS, POLICY_PRESETS, DistillationConfig

TOY = TransformerConfig(
    vocab_size=300,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    d_ff=16,
    max_length=128,
)


def shared(config: OnlineConfig) -> dict[str, Any]:
    """What every script is asked that learns from what it samples."""
    fields = dataclasses.fields(OnlineConfig)
    return {field.name: getattr(config, field.name) for field in fields}


def check_tokens(run_dir: Path, summary: dict[str, float]) -> None:
    """Of 8 samples: tokens joined are the text, their KL adds up to the summary's."""
    rows = (run_dir / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 8
    for when in ("before", "after"):
        sides = [json.loads(row)[when] for row in rows]
        for side in sides:
            assert "".join(side["tokens"]) == side["completion"]
        lengths = [len(side["tokens"]) for side in sides]
        assert sum(lengths) / 8 == summary[f"{when}/response_length"]
        if f"{when}/kl" not in summary:  # there is no reference
            assert not any("kl" in side for side in sides)
            continue
        assert [len(side["kl"]) for side in sides] == lengths
        total = sum(sum(side["kl"]) for side in sides)
        assert total / 8 == pytest.approx(summary[f"{when}/kl"], abs=2e-4)


@dataclasses.dataclass(frozen=True)
class Toys:
    """Configs of two updates each; stages that are finished lie in ``root``."""

    root: Path

    def data(self, part: str, rows: int) -> DataConfig:
        return DataConfig(
            path=f"tfds:tiny_reviews/{part}:train[:{rows}]",
            eval_path=f"tfds:tiny_reviews/{part}:test[:10]",
            data_dir=self.root / "data",
        )

    def sft(self, run_dir: Path, **changes) -> sft.Config:
        config = sft.Config(
            run_dir,
            self.data("reviews", 16),
            model=TOY,
            batch_size=8,
            epochs=1,
            devices=1,
            log_every=1,
            save_every=1,
        )
        return dataclasses.replace(config, **changes)

    def reward(self, run_dir: Path, **changes) -> reward_model.Config:
        config = reward_model.Config(
            run_dir,
            self.data("rankings", 4),
            kind="pairwise",
            policy=self.root / "sft",
            batch_size=8,
            epochs=1,
            devices=1,
            log_every=1,
            save_every=1,
        )
        return dataclasses.replace(config, **changes)

    def preference(self, run_dir: Path, **changes) -> preference.Config:
        config = preference.Config(
            run_dir,
            self.data("rankings", 4),
            policy=self.root / "sft",
            optim=OptimConfig(learning_rate=3e-3, schedule="constant"),
            batch_size=12,
            devices=1,
            log_every=1,
            save_every=1,
        )
        return dataclasses.replace(config, **changes)

    def policy(self, run_dir: Path, preset: str = "ppo", **changes) -> policy.Config:
        """Two iterations; PPO has two epochs."""
        size = 1 if preset in ("ppo", *policy.WITHOUT_GROUPS) else 4
        sampling = SamplingConfig(max_new_tokens=8, completions=size)
        algorithm = POLICY_PRESETS[preset](sampling)
        if preset == "ppo":
            algorithm = dataclasses.replace(algorithm, epochs=2)
        config = policy.Config(
            run_dir,
            policy=self.root / "sft",
            reward=str(self.root / "reward"),
            data=self.data("prompts", 16),
            gold="rlhf_jax.data.tiny_reviews:gold_reward",
            prompt_length=64,
            algorithm=algorithm,
            episodes=16,
            batch_size=8,
            eval_samples=8,
            devices=1,
            save_every=1,
        )
        return dataclasses.replace(config, **changes)

    def distill(self, run_dir: Path, on_policy=1.0, **changes) -> distill.Config:
        """The teacher is the student, further on."""
        sampling = SamplingConfig(max_new_tokens=8)
        config = distill.Config(
            run_dir,
            policy=self.root / "sft",
            teacher=self.root / "teacher",
            data=self.data("reviews" if on_policy < 1 else "prompts", 16),
            gold="rlhf_jax.data.tiny_reviews:gold_reward",
            prompt_length=64,
            distillation=DistillationConfig(sampling, on_policy=on_policy),
            optim=OptimConfig(learning_rate=1e-2, schedule="constant"),
            updates=2,
            batch_size=8,
            eval_samples=8,
            devices=1,
            save_every=1,
        )
        return dataclasses.replace(config, **changes)

    def teacher(self) -> None:
        """Trains one, where none is yet."""
        if not (self.root / "teacher").exists():
            optim = OptimConfig(learning_rate=3e-2, schedule="constant")
            changes = {"policy": self.root / "sft", "optim": optim}
            sft.main(self.sft(self.root / "teacher", **changes))

    def online(
        self, run_dir: Path, preset: str = "online_dpo", **changes
    ) -> online_preference.Config:
        sampling = SamplingConfig(max_new_tokens=8, completions=2)
        asked = self.policy(run_dir, "grpo")
        config = online_preference.Config(
            **{
                f.name: getattr(asked, f.name) for f in dataclasses.fields(OnlineConfig)
            },
            online=ONLINE_PRESETS[preset](sampling),
        )
        return dataclasses.replace(config, **changes)

    def expert(self, run_dir: Path, **changes) -> expert_iteration.Config:
        sampling = SamplingConfig(max_new_tokens=8, completions=4)
        asked = self.policy(run_dir, "grpo")
        config = expert_iteration.Config(
            **{
                f.name: getattr(asked, f.name) for f in dataclasses.fields(OnlineConfig)
            },
            expert=expert_iteration.ExpertConfig(sampling, epochs=2, rows=1),
        )
        return dataclasses.replace(config, **changes)

    def best_of_n(self, run_dir: Path, **changes) -> best_of_n.Config:
        config = best_of_n.Config(
            run_dir,
            policy=self.root / "sft",
            reward=str(self.root / "reward"),
            gold="rlhf_jax.data.tiny_reviews:gold_reward",
            data=self.data("prompts", 16),
            prompts=6,
            prompt_length=64,
            sampling=SamplingConfig(max_new_tokens=8, completions=4),
            batch_size=4,
            devices=1,
        )
        return dataclasses.replace(config, **changes)

    def make(self) -> None:
        """Trains the stages that later ones start from."""
        for part in ("reviews", "rankings", "prompts"):
            load_tiny_reviews(part, "train", data_dir=self.root / "data")
        sft.main(self.sft(self.root / "sft"))
        reward_model.main(self.reward(self.root / "reward"))
