"""The numbers of PPO from human feedback, and the literature's two presets."""

import dataclasses
from typing import Literal

from rlhf_jax.errors import UserError
from rlhf_jax.optim import OptimConfig
from rlhf_jax.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The leash to the reference policy: reward −coef · KL."""

    coef: float = 0.05
    """KL coefficient β; where it starts when it adapts."""
    kind: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL of a token; k1 = log π − log π_ref."""
    target: float | None = None
    """Adapts the coefficient towards this KL, nats an episode; none keeps it fixed."""
    horizon: int = 10_000
    """Episodes over which the coefficient adapts."""

    def __post_init__(self):
        if self.coef < 0:
            raise UserError(f"kl.coef = {self.coef}: expected 0 or more")
        if self.target is not None and self.target <= 0:
            raise UserError(
                f"kl.target = {self.target}: expected a positive KL in nats an "
                "episode, or none for a fixed coefficient"
            )


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO on KL-penalised rewards (arXiv:1707.06347, 1909.08593, 2203.02155)."""

    sampling: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(max_new_tokens=48)
    )
    """Response budget, temperature (of every log-prob), truncation, stop tokens."""
    kl: KLConfig = dataclasses.field(default_factory=KLConfig)
    """KL penalty."""
    missing_stop: Literal["keep", "replace", "subtract"] = "replace"
    """What a response without a stop token does to its score."""
    missing_stop_score: float = -1.0
    """The score that replaces it; or what is added to it, for subtract."""
    score_clip: float | None = None
    """Clips scores to ± this; none leaves them as they are."""
    whiten_rewards: bool = False
    """Divides the rewards of a batch by their standard deviation, mean kept."""
    gamma: float = 1.0
    """Discount of GAE."""
    lam: float = 0.95
    """λ of GAE."""
    epochs: int = 4
    """Passes over each batch of episodes."""
    minibatches: int = 1
    """Updates a pass."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""
    clip_eps: float = 0.2
    """Clip range of the policy's probability ratio."""
    value_clip_eps: float | None = 0.2
    """Clip range of the value's change; none does not clip."""
    value_coef: float = 0.1
    """Weight of the value loss."""

    def __post_init__(self):
        for name in ("epochs", "minibatches", "micro_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 1 or more")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 0 to 1")
        if self.clip_eps <= 0:
            raise UserError(f"clip_eps = {self.clip_eps}: expected more than 0")


@dataclasses.dataclass(frozen=True)
class PPOPreset:
    """A paper's numbers: algorithm, batch, optimiser, critic."""

    ppo: PPOConfig
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
        ppo=PPOConfig(
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
        ppo=PPOConfig(
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
