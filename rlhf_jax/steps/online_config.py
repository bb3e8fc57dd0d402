"""What online preference optimisation is asked, and the rows of three papers."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from rlhf_jax.errors import UserError
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps.preference import PreferenceConfig


@dataclasses.dataclass(frozen=True)
class OnlinePreferenceConfig:
    """Two completions a prompt, and what is learned from which of them is better.

    Raises:
      UserError: a value that no training can have; the message names the option.

    >>> OnlinePreferenceConfig(SamplingConfig(24, completions=2)).preference.beta
    0.1
    """

    sampling: SamplingConfig
    """How both completions are drawn."""
    mixture: float = 0.0
    """α of who draws the second one, π^(1−α) π_ref^α: 0 is the policy itself, 1 the
    reference."""
    loss: Literal["pair", "nash_md"] = "pair"
    """The loss of a pair, or the policy gradient of Nash-MD."""
    preference: PreferenceConfig = PreferenceConfig()
    """The loss of a pair; β and micro-batches for Nash-MD, too."""
    labels: Literal["better", "drawn"] = "better"
    """Who is chosen: the better score; or drawn, the first with probability
    σ(s₁ − s₂)."""
    xpo_coef: float = 0.0
    """α of XPO's bonus, which lowers log π of the second completion."""

    def __post_init__(self):
        if self.sampling.completions != 2:
            raise UserError(
                f"sampling.completions = {self.sampling.completions}: expected 2, "
                "which are compared"
            )
        if not 0 <= self.mixture <= 1:
            raise UserError(
                f"mixture = {self.mixture}: expected 0 (the policy) to 1 (reference)"
            )
        if not self.xpo_coef >= 0:
            raise UserError(f"xpo_coef = {self.xpo_coef}: expected 0 or more")
        if self.xpo_coef and (self.loss, self.preference.kind) != ("pair", "dpo"):
            raise UserError(
                f"xpo_coef = {self.xpo_coef}: it is for the loss of a pair of kind dpo"
            )
        if self.preference.ld_alpha != 1:
            raise UserError(
                f"preference.ld_alpha = {self.preference.ld_alpha}: expected 1, it is "
                "for pairs that are given"
            )
        if self.loss == "nash_md" and self.sampling.temperature != 1:
            raise UserError(
                f"sampling.temperature = {self.sampling.temperature}: expected 1 for "
                "nash_md, the gradient of the policy that samples"
            )


OnlinePreset = Callable[[SamplingConfig], OnlinePreferenceConfig]


def _online_dpo(sampling: SamplingConfig) -> OnlinePreferenceConfig:
    """Guo et al. 2024, arXiv:2402.04792."""
    return OnlinePreferenceConfig(sampling)


def _xpo(sampling: SamplingConfig) -> OnlinePreferenceConfig:
    """Xie et al. 2024, arXiv:2405.21046; α as in TRL."""
    return OnlinePreferenceConfig(sampling, mixture=1.0, xpo_coef=1e-5)


def _nash_md(sampling: SamplingConfig) -> OnlinePreferenceConfig:
    """Munos et al. 2023, arXiv:2312.00886, with a small share of the reference."""
    return OnlinePreferenceConfig(sampling, mixture=0.125, loss="nash_md")


ONLINE_PRESETS: dict[str, OnlinePreset] = {
    "online_dpo": _online_dpo,
    "xpo": _xpo,
    "nash_md": _nash_md,
}
