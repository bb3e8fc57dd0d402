"""Over-optimisation: how gold reward rises and falls on the way from the reference."""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Method = Literal["rl", "best_of_n"]


class OveroptimizationFit(NamedTuple):
    """Gold reward gained on the way from the reference, d = √KL away from it.

    d(α − γ log d) of reinforcement learning, d(α − γ d) of best of n; see
    `fit_overoptimization`.
    """

    method: Method
    alpha: float  # score a √nat
    gamma: float
    r_squared: float  # share of the variance of gold reward that the curve explains

    def gain(self, distance: npt.ArrayLike) -> np.ndarray:
        """What the curve says at d ≥ 0, in units of gold reward; 0 at 0."""
        d = np.asarray(distance, np.float64)
        return self.alpha * d - self.gamma * _bend(d, self.method)

    @property
    def peak(self) -> float:
        """The d at which gold reward is highest; infinite where it never falls.

        exp(α/γ − 1) of reinforcement learning, α/(2γ) of best of n.
        """
        if self.gamma <= 0:
            return float("inf")
        if self.method == "rl":
            return float(np.exp(self.alpha / self.gamma - 1))
        return max(self.alpha / (2 * self.gamma), 0.0)


def fit_overoptimization(
    kl: npt.ArrayLike, gold: npt.ArrayLike, *, method: Method
) -> OveroptimizationFit:
    """Fits the form that gold reward takes when a proxy of it is optimised.

    With d = √KL(π ‖ π_ref), by least squares over the points,

      R(d) = d (α − γ log d)  of reinforcement learning,
      R(d) = d (α − γ d)      of best of n,

    where R is the gold reward less that of the reference. Gao et al. 2022,
    arXiv:2210.10760, equations 1 and 2, whose β is γ here.

    Args:
      kl: [N] KL divergence from the reference, nats a response, 0 or above.
      gold: [N] gold reward less the reference's.
      method: how the policies were made.

    Returns:
      α, γ, and R² = 1 − Σ (gold − fit)² / Σ (gold − mean gold)².

    Raises:
      ValueError: the shapes differ, a number is not finite, a KL is negative, or less
        than three distances differ: two parameters would go through all of them.

    >>> d = np.linspace(0.0, 3.0, 7)
    >>> fit = fit_overoptimization(d**2, d * (1.0 - 0.25 * d), method="best_of_n")
    >>> round(fit.alpha, 6), round(fit.gamma, 6), round(fit.r_squared, 6)
    (1.0, 0.25, 1.0)
    >>> round(fit.peak, 6)
    2.0
    """
    kl, gold = np.asarray(kl, np.float64), np.asarray(gold, np.float64)
    if kl.ndim != 1 or kl.shape != gold.shape:
        raise ValueError(
            f"kl of shape {kl.shape}, gold of shape {gold.shape}: expected [N], [N]"
        )
    if not (np.isfinite(kl).all() and np.isfinite(gold).all()):
        raise ValueError("kl and gold: expected finite numbers")
    if (kl < 0).any():
        raise ValueError(f"kl = {kl.min():g}: expected 0 or above; estimates of single "
                         "samples are to be averaged first")  # fmt: skip
    d = np.sqrt(kl)
    if len(np.unique(d)) < 3:
        raise ValueError(f"{len(np.unique(d))} distances: expected three or more")
    columns = np.stack([d, -_bend(d, method)], axis=1)
    (alpha, gamma), *_ = np.linalg.lstsq(columns, gold)
    rest = np.sum((gold - columns @ (alpha, gamma)) ** 2)
    r_squared = 1 - rest / np.sum((gold - gold.mean()) ** 2)
    return OveroptimizationFit(method, float(alpha), float(gamma), float(r_squared))


def _bend(d: np.ndarray, method: Method) -> np.ndarray:
    """What bends the curve down: d log d, 0 at 0; or d²."""
    if method == "best_of_n":
        return d**2
    return d * np.log(np.where(d > 0, d, 1.0))
