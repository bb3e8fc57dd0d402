"""Which kind of preference loss takes which option, and what an option may be."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

PreferenceKind = Literal[
    "dpo",
    "ipo",
    "hinge",
    "robust",
    "exo",
    "discopop",
    "nca",
    "sppo",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
]
ReferenceFreeKind = Literal["simpo", "cpo", "cpo_hinge", "orpo"]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# Kinds that see no more of two log-ratios than by how much one leads, so that the
# constant which f-divergences leave in each of them cancels.
_OF_THE_LEAD = {"dpo", "ipo", "hinge", "robust", "exo", "discopop"}
TAKERS: dict[str, set[str]] = {
    "label_smoothing": {"dpo", "robust", "exo", "aot", "aot_unpaired"},
    "tau": {"discopop"},
    "divergence": _OF_THE_LEAD,
    "alpha": _OF_THE_LEAD,
    "gamma": {"simpo"},
}
_NOT_GIVEN = (None, 0, "reverse_kl")


def complaint(kind: str, kinds: Sequence[str], **options: Any) -> str | None:
    """One line on the first option that cannot be, or None. No reference.

    Args:
      kind: which loss.
      kinds: the losses there are.
      options: the rest of the loss's options, by name; None where not given.

    >>> complaint("ipo", ["dpo", "ipo"], beta=0.1, label_smoothing=0.1)
    'label_smoothing = 0.1: it is for dpo, not for ipo'
    """
    if kind not in kinds:
        return f"kind = {kind!r}, expected one of {', '.join(kinds)}"
    for name, value in options.items():
        takers = TAKERS.get(name, {kind})
        if kind not in takers and value not in _NOT_GIVEN:
            known = ", ".join(k for k in kinds if k in takers)
            return f"{name} = {value!r}: it is for {known}, not for {kind}"
    return _out_of_range(kind, **options)


def _out_of_range(
    kind: str,
    *,
    beta: float,
    label_smoothing: float | None = None,
    tau: float | None = None,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
    gamma: float | None = None,
) -> str | None:
    if not beta > 0:
        return f"beta = {beta}, expected more than 0"
    if label_smoothing is not None and not 0 <= label_smoothing < 0.5:
        return (
            f"label_smoothing = {label_smoothing}, expected 0 or more and less than 0.5"
        )
    if kind == "exo" and label_smoothing == 0:
        return "label_smoothing = 0 for exo, expected more than 0: log 0 is in its loss"
    if tau is not None and not tau > 0:
        return f"tau = {tau}, expected more than 0"
    if divergence not in get_args(Divergence):
        names = ", ".join(get_args(Divergence))
        return f"divergence = {divergence!r}, expected one of {names}"
    if alpha is not None and divergence != "alpha":
        return f"alpha = {alpha}: it is for divergence = 'alpha', not for {divergence}"
    if alpha is not None and not 0 < alpha < 1:
        return f"alpha = {alpha}, expected more than 0 and less than 1"
    if gamma is not None and not gamma >= 0:
        return f"gamma = {gamma}, expected 0 or more"
    return None
