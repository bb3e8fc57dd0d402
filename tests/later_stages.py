"""The later stages of two devices, in one process or in two.

experiments/test_processes.py starts it: python later_stages.py ROOT RESULTS
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from experiments import cli, policy, preference, reward_model
from experiments.runs import RunConfig

GOLD = "rlhf_jax.data.tiny_reviews:gold_reward"


def run_stages(toys: Any, results: Path) -> None:
    """A reward model, DPO, PPO on scores of a network, GRPO on those of a function."""
    devices = {"devices": 2}
    reward_model.main(
        toys.reward(results / "reward", normalize=True, normalize_samples=4, **devices)
    )
    preference.main(toys.preference(results / "preference", **devices))
    policy.main(toys.policy(results / "ppo", critic="head", **devices))
    policy.main(toys.policy(results / "grpo", "grpo", reward=GOLD, **devices))


if __name__ == "__main__":
    root, folder = map(Path, sys.argv[1:])
    toys = importlib.import_module("conftest").Toys(root)  # of the folder experiments
    sys.argv[1:] = []
    cli.run(
        lambda config: run_stages(toys, folder),
        {"default": RunConfig(folder)},
        description="",
        several=True,
    )
