"""Numbers as JSON has them: it knows no NaN, and None says that one is not known."""

import numpy as np

from rlhf_jax.feedback import Interval


def known(x: float) -> float | None:
    """A number, or None for NaN.

    >>> known(0.5), known(float("nan"))
    (0.5, None)
    """
    return None if np.isnan(x) else float(x)


def ends(interval: Interval) -> dict[str, float | None]:
    """A number with its 95 % interval.

    >>> ends(Interval(1.0, 0.5, 1.5))
    {'value': 1.0, 'low95': 0.5, 'high95': 1.5}
    """
    names = ("value", "low95", "high95")
    return {name: known(x) for name, x in zip(names, interval, strict=True)}


def show_ends(number: dict[str, float | None], digits: int = 3) -> str:
    """The same as text.

    >>> show_ends({"value": 1.0, "low95": 0.5, "high95": 1.5}, 1)
    '1.0 (0.5 … 1.5)'
    """
    shown = lambda x: "–" if x is None else f"{x:.{digits}f}"
    value = shown(number["value"])
    if number["low95"] is None:
        return f"{value} (not known)"
    return f"{value} ({shown(number['low95'])} … {shown(number['high95'])})"
