"""What a population came to: mean and spread over seeds, a table and a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.population import Config
from rlhf_jax.terminal import print_table

SHOWN = {"objective/score": "reward", "objective/kl": "KL (nats an episode)"}


def title(config: Config) -> str:
    """What a table or picture is of."""
    return f"Advantages by {config.algorithm.advantage}, {config.seeds} seeds"


def summarise(config: Config, curves: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean and deviation over the seeds of each rate, of the last tenth; as a table."""
    last = max(1, config.iterations // 10)
    summary, rows = {}, []
    for i, rate in enumerate(config.learning_rates):
        row: list[object] = [f"{rate:g}"]
        for name in SHOWN:
            values = by_rate(config, curves[name])[-last:, i].mean(axis=0)
            mean, deviation = float(values.mean()), float(values.std())
            summary |= {f"{name}/{rate:g}": mean, f"{name}_std/{rate:g}": deviation}
            row.append(f"{mean:.3f} ± {deviation:.3f}")
        rows.append(row)
    print_table(
        f"{title(config)}, the last {last} of "
        f"{config.iterations} iterations, mean ± standard deviation",
        ["learning rate", *SHOWN.values()],
        rows,
    )
    return summary


def by_rate(config: Config, values: np.ndarray) -> np.ndarray:
    """[iterations, M] -> [iterations, rates, seeds]."""
    return values.reshape(len(values), len(config.learning_rates), config.seeds)


def draw(config: Config, curves: dict[str, np.ndarray], path: Path) -> None:
    """Mean and standard deviation over the seeds, a colour a learning rate."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True)
    for axes, (name, label) in panels:
        values = by_rate(config, curves[name])
        steps = np.arange(1, len(values) + 1)
        for i, rate in enumerate(config.learning_rates):
            mean, spread = values[:, i].mean(axis=1), values[:, i].std(axis=1)
            axes.plot(steps, mean, color=f"C{i}", label=f"learning rate {rate:g}")
            band = (mean - spread, mean + spread)
            axes.fill_between(steps, *band, color=f"C{i}", alpha=0.2, linewidth=0)
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8.5, frameon=False)
    figure.suptitle(f"{title(config)}, mean ± deviation")
    figure.savefig(path, dpi=100)
