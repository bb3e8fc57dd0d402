"""An algorithm is a row: its advantage, surrogate, place of the KL, reduction."""

import dataclasses
from typing import Literal, get_args

from rlhf_jax.errors import UserError
from rlhf_jax.ops.advantages import GroupScale
from rlhf_jax.ops.importance import ImportanceKind, ImportanceLevel
from rlhf_jax.ops.kl import KLKind
from rlhf_jax.ops.reduction import Reduction
from rlhf_jax.sampling import SamplingConfig

Advantage = Literal["gae", "returns", "greedy", "group", "leave_one_out"]
Surrogate = Literal["ppo", "gspo", "cispo", "policy_gradient"]
KLPlace = Literal["reward", "loss"]
MissingStop = Literal["keep", "replace", "subtract"]

CHOICES = {
    "advantage": Advantage,
    "scale": GroupScale,
    "surrogate": Surrogate,
    "reduction": Reduction,
    "missing_stop": MissingStop,
    "importance_kind": ImportanceKind,
    "importance_level": ImportanceLevel,
}
LEAST = {
    "epochs": 1,
    "minibatches": 1,
    "micro_batches": 1,
    "gamma": 0,
    "lam": 0,
    "value_coef": 0,
    "value_warmup": 0,
    "entropy_coef": 0,
    "ptx_coef": 0,
    "constant_length": 1,
    "overlong_buffer": 1,
}
MORE_THAN = {
    "clip_eps": 0,
    "clip_eps_high": 0,
    "dual_clip": 1,
    "max_ratio": 0,
    "score_clip": 0,
    "value_clip_eps": 0,
    "importance_cap": 0,
}
GROUPS = ("group", "leave_one_out")  # advantages that compare responses to a prompt
# Which values of an option have others of their own; under another value those stay at
# their defaults.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "surrogate": {
        "ppo": ("clip_eps", "clip_eps_high", "dual_clip"),
        "gspo": ("clip_eps", "clip_eps_high"),
        "cispo": ("max_ratio",),
    },
    "advantage": {
        "gae": ("gamma", "lam", "value_coef", "value_clip_eps", "value_warmup"),
        "returns": ("gamma",),
        "group": ("scale", "skip_equal"),
        "leave_one_out": ("skip_equal",),
    },
    "reduction": {"constant": ("constant_length",)},
}


def _one_of(name: str, value: str, choice: object) -> None:
    if value not in get_args(choice):
        expected = " or ".join(get_args(choice))
        raise UserError(f"{name} = {value!r}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The leash to the reference policy: −β · KL in the reward, or +β · KL in the loss.

    Raises:
      UserError: a value that no training can have; the message names it.
    """

    coef: float = 0.05
    """KL coefficient β; where it starts when it adapts. 0 needs no reference policy."""
    kind: KLKind = "k1"
    """Estimator of the KL of a token; k1 = log π − log π_ref, for the reward alone."""
    place: KLPlace = "reward"
    """Subtracted from the reward of each token, or a term of its loss."""
    target: float | None = None
    """Adapts the coefficient towards this KL, nats an episode; none keeps it fixed."""
    horizon: int = 10_000
    """Episodes over which the coefficient adapts."""

    def __post_init__(self):
        if self.coef < 0:
            raise UserError(f"kl.coef = {self.coef}: expected 0 or more")
        for name, choice in (("kind", KLKind), ("place", KLPlace)):
            _one_of(f"kl.{name}", getattr(self, name), choice)
        if self.target is not None and self.target <= 0:
            raise UserError(
                f"kl.target = {self.target}: expected a positive KL in nats an "
                "episode, or none for a fixed coefficient"
            )
        if self.target is not None and not self.coef:
            raise UserError(
                f"kl.target = {self.target} with kl.coef = 0: the coefficient adapts "
                "by factors; expected more than 0 to start from"
            )
        if self.kind == "k1" and self.place == "loss":
            raise UserError(
                "kl.kind = 'k1' with kl.place = loss: its gradient is 0 on average, "
                "and not that of a KL; expected k2 or k3"
            )


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """PPO (arXiv:1707.06347, 1909.08593, 2203.02155); `POLICY_PRESETS` has all others.

    Raises:
      UserError: a value that no training can have, or an option that the others leave
        without effect; the message names it.

    >>> PolicyConfig(SamplingConfig(max_new_tokens=24)).kl.coef
    0.05
    """

    sampling: SamplingConfig = SamplingConfig(max_new_tokens=48)
    """Response budget, temperature (of every log-prob), truncation, stop tokens;
    completions: the responses to a prompt that are compared."""
    kl: KLConfig = KLConfig()
    """KL penalty."""
    missing_stop: MissingStop = "replace"
    """What a response without a stop token does to its score."""
    missing_stop_score: float = -1.0
    """The score that replaces it; or what is added to it, for subtract."""
    score_clip: float | None = None
    """Clips scores to ± this; none leaves them as they are."""
    overlong_buffer: int | None = None
    """Last tokens of the budget over which a response loses up to 1 of its reward."""
    whiten_rewards: bool = False
    """Divides the rewards of a batch by their standard deviation, mean kept."""
    advantage: Advantage = "gae"
    """What a reward is compared with: a critic, nothing, the score of the greedy
    response, the mean of its group, the mean of the others in it."""
    gamma: float = 1.0
    """Discount a token, for gae and returns."""
    lam: float = 0.95
    """λ of GAE; 1 is the return minus the value."""
    scale: GroupScale = "std"
    """What a lead over the group is divided by: its deviation, nothing, the batch's."""
    whiten_advantages: bool = True
    """Gives the advantages of a batch mean 0 and deviation 1."""
    skip_equal: bool = False
    """Groups whose scores are all equal have no token in the update (DAPO, GPG)."""
    importance_cap: float | None = None
    """Largest weight that corrects for rollouts of an older policy; none does not."""
    importance_kind: ImportanceKind = "truncate"
    """What becomes of larger weights: the cap, or 0."""
    importance_level: ImportanceLevel = "token"
    """Whether a token or its whole response is weighted."""
    epochs: int = 4
    """Passes over each batch of episodes."""
    minibatches: int = 1
    """Updates a pass."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""
    surrogate: Surrogate = "ppo"
    """Clipped ratios of tokens or (gspo) responses, clipped weights, or no ratio."""
    clip_eps: float = 0.2
    """Clip range of the probability ratio, of a token or, for gspo, a response."""
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
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, nats a token, which the loss then falls with."""
    ptx_coef: float = 0.0
    """Weight of the supervised loss a token of demonstrations (PPO-ptx)."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    value_clip_eps: float | None = 0.2
    """Clip range of the value's change; none does not clip."""
    value_warmup: int = 0
    """First updates, in which the critic learns alone."""

    def __post_init__(self):
        for name, choice in CHOICES.items():
            _one_of(name, getattr(self, name), choice)
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise UserError(f"{name} = {value}: expected {least} or more")
        for name, bound in MORE_THAN.items():
            if (value := getattr(self, name)) is not None and not value > bound:
                raise UserError(f"{name} = {value}: expected more than {bound}")
        for name in ("gamma", "lam"):
            if (value := getattr(self, name)) > 1:
                raise UserError(f"{name} = {value}: expected 0 to 1")
        self._check_sampling()
        for choice, owned in OPTIONS.items():
            self._check_options(choice, owned)

    def _check_sampling(self) -> None:
        budget, size = self.sampling.max_new_tokens, self.sampling.completions
        if self.advantage in GROUPS and size < 2:
            raise UserError(
                f"sampling.completions = {size}: expected 2 or more for advantage = "
                f"{self.advantage}"
            )
        if self.overlong_buffer is not None and self.overlong_buffer > budget:
            raise UserError(
                f"overlong_buffer = {self.overlong_buffer}: expected "
                f"sampling.max_new_tokens = {budget} or less"
            )

    def _check_options(self, choice: str, owned: dict[str, tuple[str, ...]]) -> None:
        """Refuses what another option leaves without effect."""
        for field in dataclasses.fields(self):
            takers = [taker for taker, names in owned.items() if field.name in names]
            value, chosen = getattr(self, field.name), getattr(self, choice)
            if takers and chosen not in takers and value != field.default:
                raise UserError(
                    f"{field.name} = {value}: an option of {choice} = "
                    f"{' or '.join(takers)}, not {chosen}"
                )

    @property
    def length(self) -> int | None:
        """Tokens that sums are divided by, for the reduction "constant" alone."""
        if self.reduction != "constant":
            return None
        return self.constant_length or self.sampling.max_new_tokens
