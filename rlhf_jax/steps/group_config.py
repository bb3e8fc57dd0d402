"""Algorithms that compare the responses to a prompt, each a row of numbers."""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

from rlhf_jax.errors import UserError
from rlhf_jax.ops.advantages import GroupScale
from rlhf_jax.ops.kl import KLKind
from rlhf_jax.ops.reduction import Reduction
from rlhf_jax.sampling import SamplingConfig

GroupAdvantage = Literal["group", "leave_one_out"]
Surrogate = Literal["ppo", "gspo", "cispo", "policy_gradient"]
KLPlace = Literal["loss", "score"]

CHOICES = {
    "scale": GroupScale,
    "advantage": GroupAdvantage,
    "surrogate": Surrogate,
    "reduction": Reduction,
    "kl_kind": KLKind,
    "kl_in": KLPlace,
}
LEAST = {
    "epochs": 1,
    "minibatches": 1,
    "micro_batches": 1,
    "kl_coef": 0,
    "constant_length": 1,
    "overlong_buffer": 1,
}
MORE_THAN = {"clip_eps": 0, "clip_eps_high": 0, "dual_clip": 1, "max_ratio": 0}
# The options of each surrogate; of the others an option stays at its default.
OPTIONS: dict[Surrogate, tuple[str, ...]] = {
    "ppo": ("clip_eps", "clip_eps_high", "dual_clip"),
    "gspo": ("clip_eps", "clip_eps_high"),
    "cispo": ("max_ratio",),
    "policy_gradient": (),
}


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """GRPO (arXiv:2402.03300) with a mean over tokens; `GROUP_PRESETS` has others.

    The policy gradient is right for the first update of a batch: later ones see
    responses of an older policy, which it has no ratio to correct for.

    Raises:
      UserError: a value that no training can have, or an option that the others leave
        without effect; the message names it.

    >>> sampling = SamplingConfig(max_new_tokens=24, completions=8)
    >>> GroupConfig(sampling).kl_coef
    0.04
    """

    sampling: SamplingConfig
    """Response budget, temperature (of every log-prob); completions: the group size."""
    kl_coef: float = 0.04
    """Weight β of the KL to the reference; 0 needs no reference policy."""
    epochs: int = 1
    """Passes over each batch of episodes."""
    minibatches: int = 1
    """Updates a pass."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""
    clip_eps: float = 0.2
    """Clip range of the probability ratio, of a token or, for gspo, a response."""
    scale: GroupScale = "std"
    """What advantages are divided by: the group's deviation, nothing, the batch's."""
    advantage: GroupAdvantage = "group"
    """What a score is compared with: the mean of its group, or of the others in it."""
    surrogate: Surrogate = "ppo"
    """Clipped ratios of tokens or (gspo) responses, clipped weights, or no ratio."""
    clip_eps_high: float | None = None
    """Clip range above 1, for ppo and gspo; none is clip_eps."""
    dual_clip: float | None = None
    """Bounds the loss of unlikely bad tokens, for ppo; none does not."""
    max_ratio: float = 5.0
    """Largest weight of a token, for cispo."""
    reduction: Reduction = "token"
    """Mean over tokens, over responses' means, or over sums by a constant length."""
    constant_length: int | None = None
    """Tokens that a response's sum is divided by; none is the response budget."""
    kl_kind: KLKind = "k3"
    """Estimate of the KL: k2 or k3 in the loss, k1 in the score."""
    kl_in: KLPlace = "loss"
    """Where the KL is: a term of each token's loss, or subtracted from the score."""
    overlong_buffer: int | None = None
    """Last tokens of the budget over which a response loses up to 1 of its score."""
    skip_equal: bool = False
    """Groups whose scores are all equal have no token in the update: DAPO's filter, but
    no other prompts are drawn in their place."""

    def __post_init__(self):
        for name, choice in CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choice):
                expected = " or ".join(get_args(choice))
                raise UserError(f"{name} = {value!r}: expected {expected}")
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise UserError(f"{name} = {value}: expected {least} or more")
        for name, bound in MORE_THAN.items():
            if (value := getattr(self, name)) is not None and not value > bound:
                raise UserError(f"{name} = {value}: expected more than {bound}")
        if (size := self.sampling.completions) < 2:
            raise UserError(f"sampling.completions = {size}: expected 2 or more")
        budget, buffer = self.sampling.max_new_tokens, self.overlong_buffer
        if buffer is not None and buffer > budget:
            raise UserError(
                f"overlong_buffer = {buffer}: expected sampling.max_new_tokens = "
                f"{budget} or less"
            )
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Refuses what the other options leave without effect, or make wrong."""
        for field in dataclasses.fields(self):
            taken_by = [s for s, names in OPTIONS.items() if field.name in names]
            value = getattr(self, field.name)
            if taken_by and self.surrogate not in taken_by and value != field.default:
                raise UserError(
                    f"{field.name} = {value}: an option of surrogate = "
                    f"{' or '.join(taken_by)}, not {self.surrogate}"
                )
        if self.advantage == "leave_one_out" and self.scale != "none":
            raise UserError(
                f"scale = {self.scale!r}: leave_one_out advantages are not divided; "
                "expected none"
            )
        if self.constant_length is not None and self.reduction != "constant":
            raise UserError(
                f"constant_length = {self.constant_length}: an option of reduction = "
                f"constant, not {self.reduction}"
            )
        if (self.kl_kind == "k1") != (self.kl_in == "score"):
            expected = "k1" if self.kl_in == "score" else "k2 or k3"
            raise UserError(
                f"kl_kind = {self.kl_kind!r} with kl_in = {self.kl_in}: its gradient "
                f"is not that of a KL; expected {expected}"
            )

    @property
    def length(self) -> int | None:
        """Tokens that sums are divided by, for the reduction "constant" alone."""
        if self.reduction != "constant":
            return None
        return self.constant_length or self.sampling.max_new_tokens


# How an algorithm of a paper compares, clips, reduces; group size, learning rate and
# length are the task's.
GROUP_PRESETS: dict[str, Callable[[SamplingConfig], GroupConfig]] = {
    # "DeepSeekMath", arXiv:2402.03300, §4.2: groups of 64.
    "grpo": lambda sampling: GroupConfig(sampling, reduction="sequence"),
    # "Back to Basics", arXiv:2402.14740: groups of 2 and 4.
    "rloo": lambda sampling: GroupConfig(
        sampling,
        kl_coef=0.03,
        kl_kind="k1",
        kl_in="score",
        scale="none",
        advantage="leave_one_out",
        surrogate="policy_gradient",
        reduction="constant",
        constant_length=1,
    ),
    # "Understanding R1-Zero-Like Training", arXiv:2503.20783: groups of 8.
    "dr_grpo": lambda sampling: GroupConfig(
        sampling, kl_coef=0.0, scale="none", reduction="constant"
    ),
    # "DAPO", arXiv:2503.14476, §4.1: groups of 16; 4,096 of 20,480 tokens are buffer.
    "dapo": lambda sampling: GroupConfig(
        sampling,
        kl_coef=0.0,
        clip_eps_high=0.28,
        overlong_buffer=max(1, sampling.max_new_tokens // 5),
        skip_equal=True,
    ),
    # "Group Sequence Policy Optimization", arXiv:2507.18071, §5.1.
    "gspo": lambda sampling: GroupConfig(
        sampling,
        kl_coef=0.0,
        minibatches=4,
        clip_eps=3e-4,
        clip_eps_high=4e-4,
        surrogate="gspo",
        reduction="sequence",
    ),
    # "MiniMax-M1", arXiv:2506.13585; the bound is that of "ScaleRL", arXiv:2510.13786.
    "cispo": lambda sampling: GroupConfig(sampling, kl_coef=0.0, surrogate="cispo"),
    # "GPG", arXiv:2504.02546.
    "gpg": lambda sampling: GroupConfig(
        sampling,
        kl_coef=0.0,
        scale="none",
        surrogate="policy_gradient",
        skip_equal=True,
    ),
}
