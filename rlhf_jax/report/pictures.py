"""Small pictures for a page: SVG whose colours and letters are the page's."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from rlhf_jax.report.curves import (
    COLOURS,
    Line,
    draw_lines,
    moving_average,
    plain_axes,
)

_SIZE = 11  # of letters, in the units that a phone shows as pixels
_WIDTH, _HEIGHT = 344, 196
_THEME = {colour: f"var(--run-{i})" for i, colour in enumerate(COLOURS, 1)} | {
    "#b3b3b3": "var(--edge)",
    "#ebebeb": "var(--line)",
    "#ffffff": "var(--sheet)",
}


def svg(
    draw: Callable[[Axes], None], name: str, text: str, *, height=_HEIGHT
) -> Markup:
    """A picture as SVG to be set into a page.

    Args:
      draw: draws it; its text is of this package, never of a run.
      name: unlike that of any other picture of the page.
      text: what a reader learns who does not see it.
      height: in pixels of a phone.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05)
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout=layout)
    axes = figure.add_subplot()
    draw(axes)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _themed(file.getvalue(), text)


def _themed(drawn: str, text: str) -> Markup:
    """As a part of the page: its fonts, its colours, light or dark; no ids but those
    that the picture itself refers to.
    """
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<style.*?</style>", "", drawn, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawn))
    keep = lambda match: match[0] if match[1] in used else ""
    drawn = re.sub(r' id="([^"]+)"', keep, drawn)
    drawn = re.sub(r" ?font-family: [^;\"]+;?", "", drawn)
    drawn = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]+", r"font-size: \1px", drawn)
    for colour, variable in _THEME.items():
        drawn = drawn.replace(colour, variable)
    [box] = re.findall(r'viewBox="[^"]+"', drawn)
    head = Markup('<svg class="chart" role="img" aria-label="{}" {}>')
    body = drawn[drawn.index(">") + 1 :]
    return head.format(text, Markup(box)) + Markup(re.sub(r"\n\s*", "\n", body))


def curve_picture(lines: Sequence[Line], xlabel: str) -> Callable[[Axes], None]:
    """Curves over steps."""

    def draw(axes: Axes) -> None:
        draw_lines(axes, lines, size=_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(xlabel, fontsize=_SIZE)

    return draw


def frontier_picture(
    paths: Sequence[tuple[np.ndarray, np.ndarray, str]],
) -> Callable[[Axes], None]:
    """A reward over √KL, one path a run, a dot where it ends."""

    def draw(axes: Axes) -> None:
        for kl, reward, colour in paths:
            x = np.sqrt(np.maximum(kl, 0.0))
            long = len(x) >= 20
            axes.plot(x, reward, ".", color=colour, markersize=4, alpha=0.35)
            if long:
                x, reward = moving_average(x), moving_average(reward)
            axes.plot(x, reward, color=colour, linewidth=1.8)
            axes.plot(x[-1:], reward[-1:], "o", color=colour, markersize=6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("√KL from the reference (√nats)", fontsize=_SIZE)
        plain_axes(axes, size=_SIZE)

    return draw


def reliability_picture(bins: Sequence[dict[str, Any]]) -> Callable[[Axes], None]:
    """How often the preferred one wins, over how often it should; areas are counts."""

    def draw(axes: Axes) -> None:
        most = max((b["count"] for b in bins), default=1)
        axes.plot([0, 1], [0, 1], color="#b3b3b3", linewidth=1.2, linestyle="--")
        x, y = ([b[key] for b in bins] for key in ("predicted", "observed"))
        axes.plot(x, y, color=COLOURS[0], linewidth=1.6)
        size = [12 + 90 * b["count"] / most for b in bins]
        axes.scatter(x, y, s=size, color=COLOURS[0], linewidths=0)
        begin = 0.5 if min(x + y) >= 0.5 else 0.0
        _shares(axes, "x", begin)
        _shares(axes, "y", begin)
        axes.set_xlabel("predicted share", fontsize=_SIZE)
        plain_axes(axes, size=_SIZE)

    return draw


def margin_picture(margins: Sequence[dict[str, Any]]) -> Callable[[Axes], None]:
    """Accuracy over the difference of scores, with 95 % intervals."""

    def draw(axes: Axes) -> None:
        x = np.arange(len(margins))
        y = np.array([m["accuracy"] for m in margins], float)
        low, high = (
            np.array([m[key] for m in margins], float) for key in ("low95", "high95")
        )
        axes.axhline(0.5, color="#b3b3b3", linewidth=1.2, linestyle="--")
        axes.vlines(x, low, high, color=COLOURS[0], linewidth=1.6)
        axes.plot(x, y, "o", color=COLOURS[0], markersize=6)
        labels = [f"{m['low']:.2g}–{m['high']:.2g}" for m in margins]
        axes.set_xticks(x, labels)
        axes.set_xlim(-0.5, len(margins) - 0.5)
        _shares(axes, "y", 0.5 if np.nanmin([y, low]) >= 0.5 else 0.0)
        axes.set_xlabel("difference of scores", fontsize=_SIZE)
        plain_axes(axes, size=_SIZE if len(margins) <= 6 else _SIZE - 2)

    return draw


def _shares(axes: Axes, which: Literal["x", "y"], begin: float) -> None:
    """From so much to 1."""
    rim = 0.03 * (1 - begin)
    limits = {f"{which}lim": (begin - rim, 1 + rim)}
    axes.set(**limits, **{f"{which}ticks": np.linspace(begin, 1, 6)})
