"""How well a stage does on the examples that it does not learn from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from experiments.ends import known
from experiments.inputs import Data
from rlhf_jax.rundir import save_json
from rlhf_jax.terminal import print_table
from rlhf_jax.types import Metrics

HEADINGS = {
    "reward/eval_loss": "loss (nats)",
    "preference/eval_loss": "loss",
    "preference/eval_margin": "margin (score)",
}


def held_out_metrics(
    step: Callable[[Any], Metrics], data: Data, batch_size: int
) -> Metrics:
    """What a step finds in all held-out batches."""
    return sum(map(step, data.held_out_batches(batch_size)), Metrics.of({}))


def eval_names(metrics: Metrics) -> dict[str, float]:
    """``reward/loss`` as ``reward/eval_loss`` and so on, the loss first."""
    found = metrics.compute()
    names = sorted(found, key=lambda name: (not name.endswith("/loss"), name))
    return {name.replace("/", "/eval_"): found[name] for name in names}


def report_accuracy(title: str, run_dir: Path, metrics: Metrics) -> dict[str, float]:
    """Prints held-out accuracy with its 95 % (Wilson) interval; keeps the numbers."""
    found = eval_names(metrics)
    [accuracy] = (name for name in found if name.endswith("/eval_accuracy"))
    count = int(metrics.counts[accuracy.replace("eval_", "")])
    right = round(found[accuracy] * count)
    interval = binomtest(right, count).proportion_ci(method="wilson")
    low_high = f"{interval.low:.3f} – {interval.high:.3f}"
    others = {text: found[name] for name, text in HEADINGS.items() if name in found}
    print_table(
        f"{title}, held out",
        ["judgements", "accuracy", "95 % interval", *others],
        [[count, found[accuracy], low_high, *others.values()]],
    )
    count_of: dict[str, float] = {"judgements": count}
    # One side of few labels may have none, and a mean over nothing is not known.
    told = {name: known(x) for name, x in found.items()}
    save_json(run_dir / "summary.json", told | count_of)
    return found | count_of


def preference_eval(step: Callable, *trees: Any, **options: Any) -> Metrics:
    """What a step finds before its update; that is left out, and its gradient."""
    _, metrics = step(*trees, **options)
    names = [name for name in metrics.sums if name.startswith("preference/")]
    means = {name: (metrics.sums[name], metrics.counts[name]) for name in names}
    return Metrics.of(means)
