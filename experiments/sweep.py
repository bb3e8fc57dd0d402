"""A population trained at once: seeds, and learning rates, as members of one ``vmap``.

  python -m experiments.sweep
  python -m experiments.sweep --preset grpo --learning-rates 1e-3 1e-2
  python -m experiments.sweep --compare  # with each member alone, too, and the times

One seed says little about an algorithm (Henderson et al. 2018, arXiv:1709.06560). Here
an iteration is one compiled function (`steps.policy_iteration`), and all members run in
it together: what they gain is the fixed cost of small operations, so the networks are
small. The reward is the share of a response's tokens in the first quarter of the
vocabulary; prompts are uniform ids. A member's seed decides its first parameters, its
prompts and what it draws.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from experiments.population import Config, Member, iteration, members, start
from experiments.spread import SHOWN, draw, summarise
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import POLICY_PRESETS
from rlhf_jax.terminal import print_table, progress
from rlhf_jax.tracking import MetricsLogger, TrackingConfig

AGREE = 1e-4  # of a metric, relative where it is above 1

Row = dict[str, float]  # the metrics of a member's iteration


def main(config: Config) -> dict[str, float]:
    """Trains, writes and shows; returns the numbers of the table."""
    config.check()
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    population = members(config)
    rows, seconds, differences = [], [], []
    with (
        ExitStack() as stack,
        progress("sweep", config.iterations, done=0) as advance,
    ):
        loggers = [open_log(config, member, stack) for member in population]
        for number, step in enumerate(train(config, population), 1):
            for logger, row in zip(loggers, step.rows, strict=True):
                logger.log(number, row)
            mean = lambda name, rows=step.rows: statistics.mean(r[name] for r in rows)
            shown = {label: mean(name) for name, label in SHOWN.items()}
            advance(shown | {"iterations/s": len(population) / step.seconds[0]})
            rows.append(step.rows)
            seconds.append(step.seconds)
            differences += map(difference, step.alone, step.rows)
    curves = {
        name: np.array([[row[name] for row in step] for step in rows]) for name in SHOWN
    }
    draw(config, curves, run_dir / "sweep.png")
    summary = summarise(config, curves)
    if config.compare:
        summary |= compare(seconds, differences)
    save_json(run_dir / "summary.json", summary)
    print(f"curves: {run_dir / 'sweep.png'}  numbers: {run_dir / 'summary.json'}")
    return summary


class Step(NamedTuple):
    """An iteration of all members."""

    rows: list[Row]
    alone: list[Row]  # of each member by itself, where that is asked for
    seconds: tuple[float, float]  # of all together, and of one after another


def train(config: Config, population: Sequence[Member]) -> Iterator[Step]:
    """Iterates all members together and, to compare, each of them alone.

    Alone it starts from where it is in the population: over many iterations the
    rounding of differently shaped products grows, until another token is drawn.
    """
    each = Member(*map(jnp.array, zip(*population, strict=True)))
    state = jax.jit(jax.vmap(functools.partial(start, config=config)))(each)
    references = jax.tree.map(jnp.copy, state.params)  # the state is donated
    one = functools.partial(iteration, config=config)
    together: Any = jax.vmap(one, in_axes=(0, 0, 0, None))
    together, one = (jax.jit(f, donate_argnums=0) for f in (together, one))
    apart = jax.jit(functools.partial(take_apart, count=len(population)))
    for number in map(jnp.int32, range(config.iterations)):
        others = apart((state, references, each.seed)) if config.compare else []
        (state, found), seconds = timed(together, state, references, each.seed, number)
        runs = [timed(one, *member, number) for member in others]
        yield Step(
            rows=[metrics.compute() for metrics in take_apart(found, len(population))],
            alone=[metrics.compute() for (_, metrics), _ in runs],
            seconds=(seconds, sum(taken for _, taken in runs)),
        )


def take_apart(tree: Any, count: int) -> list[Any]:
    """One tree a member, from one whose leaves have an axis of members."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """(result, seconds until it is there)."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - began


def open_log(config: Config, member: Member, stack: ExitStack) -> MetricsLogger:
    """The log of a member, in a directory of its own."""
    name = f"seed{member.seed}_rate{member.learning_rate:g}"
    directory = config.run_dir / name
    directory.mkdir()
    logger = MetricsLogger(directory, TrackingConfig(), restored_step=None)
    return stack.enter_context(logger)


def difference(found: Row, expected: Row) -> tuple[float, str]:
    """The largest, relative where a number is above 1; and whose it is."""
    return max((abs(found[k] - v) / max(1.0, abs(v)), k) for k, v in expected.items())


def compare(
    seconds: Sequence[Sequence[float]], differences: Sequence[tuple[float, str]]
) -> dict[str, float]:
    """Times of all together and of one after another, without the first iteration."""
    largest, where = max(differences)
    together, alone = np.median(np.array(seconds[1:]), axis=0).tolist()
    found = {
        "seconds/together": together,
        "seconds/one_by_one": alone,
        "ratio": together / alone,
        "difference": largest,
        "agree": statistics.mean(found <= AGREE for found, _ in differences),
    }
    print_table(
        "An iteration of all members (medians; compilation is not counted)",
        ["", ""],
        [
            ["together", f"{1e3 * together:.2f} ms"],
            ["one after another", f"{1e3 * alone:.2f} ms"],
            ["ratio", f"{found['ratio']:.2f}"],
            [f"iterations whose metrics differ by {AGREE:g} at most", found["agree"]],
            ["largest difference of a metric", f"{largest:.1e}, {where}"],
        ],
    )
    return found


if __name__ == "__main__":
    grpo = POLICY_PRESETS["grpo"](SamplingConfig(8, completions=4))
    presets = {"ppo": Config(), "grpo": Config(algorithm=grpo)}
    cli.run(main, presets, description=__doc__ or "")
