"""Algorithms and numbers of papers.

`POLICY_PRESETS` says how an algorithm compares, clips and reduces; group size, learning
rate and length are the task's. `PPO_PRESETS` and `REWARD_PRESETS` are all the numbers
of the two best-documented experiments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from rlhf_jax.optim import OptimConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps.policy_config import KLConfig, PolicyConfig


def _plain(sampling: SamplingConfig, **changes: Any) -> PolicyConfig:
    """One update a batch, scores as they are, no critic, and no KL unless asked for."""
    row: dict[str, Any] = {
        "kl": KLConfig(coef=0.0),
        "missing_stop": "keep",
        "advantage": "group",
        "whiten_advantages": False,
        "epochs": 1,
    }
    return PolicyConfig(sampling, **(row | changes))


def _reinforce(sampling: SamplingConfig, **changes: Any) -> PolicyConfig:
    """The gradient of a response's log-prob, whole; the KL in the reward."""
    row: dict[str, Any] = {
        "kl": KLConfig(coef=0.03),
        "surrogate": "policy_gradient",
        "reduction": "constant",
        "constant_length": 1,
    }
    return _plain(sampling, **(row | changes))


POLICY_PRESETS: dict[str, Callable[[SamplingConfig], PolicyConfig]] = {
    # "Training language models to follow instructions", arXiv:2203.02155, step 3.
    "ppo": lambda sampling: PolicyConfig(sampling),
    # Williams 1992, with a critic for its baseline.
    "reinforce": lambda sampling: _reinforce(
        sampling, advantage="gae", lam=1.0, value_clip_eps=None
    ),
    # "ReMax", arXiv:2310.10505.
    "remax": lambda sampling: _reinforce(sampling, advantage="greedy"),
    # "Back to Basics", arXiv:2402.14740: groups of 2 and 4.
    "rloo": lambda sampling: _reinforce(sampling, advantage="leave_one_out"),
    # "REINFORCE++", arXiv:2501.03262; its variant with a baseline has k2 in the loss.
    "reinforce_pp": lambda sampling: _plain(
        sampling,
        kl=KLConfig(coef=0.01),
        advantage="returns",
        whiten_advantages=True,
    ),
    "reinforce_pp_baseline": lambda sampling: _plain(
        sampling,
        kl=KLConfig(coef=0.01, kind="k2", place="loss"),
        scale="none",
        whiten_advantages=True,
    ),
    # "DeepSeekMath", arXiv:2402.03300, §4.2: groups of 64.
    "grpo": lambda sampling: _plain(
        sampling,
        kl=KLConfig(coef=0.04, kind="k3", place="loss"),
        reduction="sequence",
    ),
    # "Understanding R1-Zero-Like Training", arXiv:2503.20783: groups of 8.
    "dr_grpo": lambda sampling: _plain(sampling, scale="none", reduction="constant"),
    # "DAPO", arXiv:2503.14476, §4.1: groups of 16; 4,096 of 20,480 tokens are buffer.
    "dapo": lambda sampling: _plain(
        sampling,
        clip_eps_high=0.28,
        overlong_buffer=max(1, sampling.max_new_tokens // 5),
        skip_equal=True,
    ),
    # "Group Sequence Policy Optimization", arXiv:2507.18071, §5.1.
    "gspo": lambda sampling: _plain(
        sampling,
        minibatches=4,
        clip_eps=3e-4,
        clip_eps_high=4e-4,
        surrogate="gspo",
        reduction="sequence",
    ),
    # "MiniMax-M1", arXiv:2506.13585; the bound is that of "ScaleRL", arXiv:2510.13786.
    "cispo": lambda sampling: _plain(sampling, surrogate="cispo"),
    # "GPG", arXiv:2504.02546.
    "gpg": lambda sampling: _plain(
        sampling, scale="none", surrogate="policy_gradient", skip_equal=True
    ),
}


@dataclasses.dataclass(frozen=True)
class PPOPreset:
    """A paper's numbers: algorithm, batch, optimiser, critic."""

    algorithm: PolicyConfig
    optim: OptimConfig
    episodes: int
    batch_size: int
    prompt_length: int
    critic: Literal["head", "reward"]
    stop_text: str | None


PPO_PRESETS = {
    # "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593, as
    # re-derived in "The N Implementation Details of RLHF with PPO".
    "ziegler2019": PPOPreset(
        algorithm=PolicyConfig(
            sampling=SamplingConfig(max_new_tokens=24, temperature=0.7, stop_after=16),
            kl=KLConfig(coef=0.15, target=6.0, horizon=10_000),
            whiten_rewards=True,
        ),
        optim=OptimConfig(learning_rate=1e-5, schedule="linear", eps=1e-5),
        episodes=1_000_000,
        batch_size=512,
        prompt_length=64,
        critic="head",
        stop_text=".",
    ),
    # "Learning to summarize from human feedback", arXiv:2009.01325, as re-derived in
    # "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031.
    "stiennon2020": PPOPreset(
        algorithm=PolicyConfig(
            sampling=SamplingConfig(max_new_tokens=53, temperature=0.7),
            kl=KLConfig(coef=0.05),
        ),
        optim=OptimConfig(learning_rate=3e-6, schedule="linear", eps=1e-5),
        episodes=1_000_000,
        batch_size=512,
        prompt_length=512,
        critic="reward",
        stop_text=None,
    ),
}


@dataclasses.dataclass(frozen=True)
class RewardPreset:
    """A paper's numbers for its reward model."""

    kind: Literal["choice", "pairwise"]
    optim: OptimConfig
    batch_size: int
    epochs: int
    normalize: bool


REWARD_PRESETS = {
    "ziegler2019": RewardPreset(
        kind="choice",
        optim=OptimConfig(learning_rate=5e-5, schedule="linear", eps=1e-5),
        batch_size=64,
        epochs=1,
        normalize=True,
    ),
    "stiennon2020": RewardPreset(
        kind="pairwise",
        optim=OptimConfig(learning_rate=3e-6, schedule="cosine", eps=1e-5),
        batch_size=64,
        epochs=1,
        normalize=True,
    ),
}
