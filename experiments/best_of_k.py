"""Of what was drawn: the curve of best-of-k, its table and picture; the best ones."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_jax.data import Conversation
from rlhf_jax.ops import best_of_n_kl, expected_best_of
from rlhf_jax.rundir import save_json
from rlhf_jax.terminal import print_table

LABELS = {"score": "reward", "gold": "gold score"}

Curve = dict[str, list[float]]  # k, kl, and the mean of each kind of score


def curve(scores: dict[str, np.ndarray], n: int) -> Curve:
    """What the best of k by the reward is expected to score, k = 1 … n; and its KL."""
    by, ks = jnp.asarray(scores["score"]), list(range(1, n + 1))
    worth = lambda x, k: expected_best_of(by, group_size=n, k=k, gold=jnp.asarray(x))
    best = lambda x, k: worth(x, k).mean().item()
    means = {name: [best(x, k) for k in ks] for name, x in scores.items()}
    return {"k": ks, "kl": best_of_n_kl(jnp.array(ks)).tolist()} | means


def ends(best: Curve) -> dict[str, float]:
    """A completion drawn at random, and the best of all n: the ends of the curve."""
    of = lambda name: {f"{name}/1": best[name][0], f"{name}/n": best[name][-1]}
    return {k: v for name in LABELS if name in best for k, v in of(name).items()}


def report(best: Curve, run_dir: Path, prompts: int) -> None:
    """The curve as numbers, table and picture."""
    save_json(run_dir / "curve.json", best)
    show(best, prompts)
    draw(best, run_dir / "curve.png")


def show(best: Curve, prompts: int) -> None:
    """A table of k = 1, 2, 4 … and n."""
    names = [name for name in LABELS if name in best]
    n = len(best["k"])
    shown = sorted({2**i for i in range(n.bit_length())} | {n})
    print_table(
        f"The best of k by the reward, {prompts} prompts",
        ["k", "KL at most (nats)", *(LABELS[name] for name in names)],
        [[k, *(best[name][k - 1] for name in ("kl", *names))] for k in shown if k <= n],
    )


def draw(best: Curve, path: Path) -> None:
    """A line a kind of score, against k and against the KL."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    xlabels = {"k": "k, completions a prompt", "kl": "KL at most (nats)"}
    for axes, (x, xlabel) in zip(figure.subplots(1, 2), xlabels.items(), strict=True):
        for name in [name for name in LABELS if name in best]:
            axes.plot(best[x], best[name], "o-", markersize=3.5, label=LABELS[name])
        axes.set_xlabel(xlabel)
        axes.set_ylabel("expected score of the best")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "k"))
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8.5, frameon=False)
    figure.savefig(path, dpi=100)


def demonstrations(
    texts: list[Any],
    completions: list[str],
    scores: dict[str, np.ndarray],
    ended: np.ndarray,
) -> list[dict[str, Any]]:
    """The best completion of each prompt, of those with a text and an end of their own.

    One that was cut off would teach to end in the midst of a sentence.
    """
    n, rows = len(completions) // len(texts), []
    usable = ended & np.array([bool(text.strip()) for text in completions])
    ranked = np.where(usable, scores["score"], -np.inf).reshape(-1, n)
    for i, (text, at) in enumerate(zip(texts, ranked.argmax(axis=1), strict=True)):
        row = i * n + int(at)
        if not usable[row]:
            continue
        said: Any = completions[row]
        if chat := isinstance(text, Conversation):
            said = [{"role": "assistant", "content": said}]
        prompt = list(text.messages) if chat else text.prompt
        judged = {name: float(x[row]) for name, x in scores.items()}
        rows.append({"prompt": prompt, "completion": said} | judged)
    return rows
