"""Which preference loss, and what goes into it."""

import dataclasses
from typing import get_args

from rlhf_jax.errors import UserError
from rlhf_jax.ops.preference_options import (
    Divergence,
    PreferenceKind,
    ReferenceFreeKind,
    complaint,
)

REFERENCE_FREE = get_args(ReferenceFreeKind)
OF_MEANS = ("simpo", "orpo")  # log-probs a token, not a completion
OF_RANKS = ("aot", "aot_unpaired")  # rows depend on one another


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Preference optimisation without a reward model (arXiv:2305.18290, 2310.12036).

    Raises:
      UserError: a value that no training can have; the message names the option.

    >>> PreferenceConfig(label_smoothing=0.1).beta
    0.1
    """

    kind: PreferenceKind | ReferenceFreeKind = "dpo"
    """The loss of a pair: of `ops.preference_loss` or `ops.reference_free_loss`."""
    beta: float = 0.1
    """How strongly the policy is held to the reference; τ of IPO, λ of ORPO."""
    label_smoothing: float | None = None
    """Share of pairs believed to be labelled the wrong way round; dpo (cDPO), robust,
    exo, aot. None: 0.001 for exo, else 0."""
    tau: float | None = None
    """τ of discopop. None: 0.05; `preference_loss` says what less than 0.102 does."""
    divergence: Divergence = "reverse_kl"
    """What holds the policy to the reference, for dpo, ipo, hinge, robust, exo,
    discopop."""
    alpha: float | None = None
    """α of the divergence alpha. None: ½."""
    gamma: float | None = None
    """The lead that simpo asks for, in score units. None: ½."""
    nll_coef: float = 0.0
    """Weight of the mean of −log π over the tokens of the chosen completion, which is
    part of ORPO (where it is 1), CPO and SLiC-HF."""
    ld_alpha: float = 1.0
    """α of LD-DPO (arXiv:2409.06411): weight of the tokens that a completion has more
    than the other of its pair. 1: all count alike."""
    weighted: bool = False
    """Whether a pair counts as far as it is the policy's own: WPO, arXiv:2406.11827."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""

    def __post_init__(self):
        wrong = complaint(
            self.kind,
            get_args(PreferenceKind) + REFERENCE_FREE,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            tau=self.tau,
            divergence=self.divergence,
            alpha=self.alpha,
            gamma=self.gamma,
        )
        if wrong:
            raise UserError(wrong)
        if not self.nll_coef >= 0:
            raise UserError(f"nll_coef = {self.nll_coef}: expected 0 or more")
        if not 0 <= self.ld_alpha <= 1:
            raise UserError(f"ld_alpha = {self.ld_alpha}: expected 0 to 1")
        if self.ld_alpha != 1 and self.kind in OF_MEANS:
            raise UserError(
                f"ld_alpha = {self.ld_alpha}: expected 1 for {self.kind}, which "
                "divides by the length"
            )
        if self.weighted and self.kind in OF_RANKS:
            raise UserError(
                f"weighted: expected none for {self.kind}, whose terms are of ranks, "
                "not of pairs"
            )
        if self.micro_batches < 1:
            raise UserError(f"micro_batches = {self.micro_batches}: expected 1 or more")
        if self.kind in OF_RANKS and self.micro_batches > 1:
            raise UserError(
                f"micro_batches = {self.micro_batches}: expected 1 for {self.kind}, "
                "which ranks the pairs of the whole batch"
            )
