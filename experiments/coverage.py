"""How often 95 % intervals contain the truth, in simulations whose truth is known.

  python -m experiments.coverage
  python -m experiments.coverage --repetitions 10000

Queries differ in difficulty and responses to one query differ from one another; N of
the former and K of the latter are drawn again and again, and each time the interval
either contains the truth or not. The table is printed and written to table.md;
docs/evaluation.md has the numbers. No model is trained: CPU, about a minute.
"""

import dataclasses
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from experiments import cli
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import (
    bradley_terry,
    elo_ratings,
    expected_reward,
    length_controlled_win_rate,
    reward_difference,
    reward_outcomes,
    win_rate,
)
from rlhf_jax.evaluation.ratings import ELO_MEAN, ELO_SCALE
from rlhf_jax.feedback import Interval
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.terminal import print_table

LEAD, LEAD_STD = 0.6, 0.5  # of the first policy, and how much that varies with a query
STRENGTHS = np.array([0.6, 0.0, -0.6])  # nats
EQUAL_LENGTH, LENGTH_COEF = 0.4, 1.5  # log-odds
QUERIES = (8, 32, 256)

Draw = Callable[[np.random.Generator, int, int, float], tuple[Interval, float]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Coverage of the intervals of `rlhf_jax.evaluation`."""

    run_dir: Path = Path("runs/coverage")
    """Where the table goes."""
    repetitions: int = 1000
    """Of each simulation."""
    seed: int = 0
    """Of the simulations."""

    def __post_init__(self):
        if self.repetitions < 1:
            raise UserError(f"repetitions = {self.repetitions}: expected 1 or more")


class Simulation(NamedTuple):
    """An interval, the truth, and what is drawn for it."""

    name: str
    draw: Draw  # (rng, N, K, standard deviation of responses): interval and truth
    responses: int
    spread: float = 1.0  # of responses to a query; queries have 1


def sampled_queries(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """Expected reward 0, of queries that are drawn anew each time."""
    rewards = rng.normal(size=(n, 1)) + spread * rng.normal(size=(n, k))
    return expected_reward(rewards).sampled, 0.0


def skewed_queries(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """The same, of queries most of which are easy: exponential variables."""
    rewards = rng.exponential(size=(n, 1)) + spread * rng.normal(size=(n, k))
    return expected_reward(rewards).sampled, 1.0


def fixed_queries(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """Expected reward of just these queries, some of which spread more than others."""
    query, scale = rng.normal(size=n), spread * rng.uniform(0.5, 1.5, size=n)
    rewards = query[:, None] + scale[:, None] * rng.normal(size=(n, k))
    return expected_reward(rewards).fixed, float(query.mean())


def two_policies(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of both on the same queries."""
    query = rng.normal(size=(n, 1))
    lead = LEAD + LEAD_STD * rng.normal(size=(n, 1))
    noise = spread * rng.normal(size=(2, n, k))
    return query + lead + noise[0], query + noise[1]


def difference(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """By how much the first policy's expected reward is higher."""
    return reward_difference(*two_policies(rng, n, k, spread), rng=rng), LEAD


def wins(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """How often the first policy wins: all k² pairs of a query's responses."""
    truth = norm.cdf(LEAD / math.hypot(spread * math.sqrt(2), LEAD_STD))
    outcomes = reward_outcomes(*two_policies(rng, n, k, spread))
    return win_rate(outcomes).rate, float(truth)


def wins_at_equal_length(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """A judge that likes length, of a policy that is longer on average."""
    longer = 0.5 + spread * rng.normal(size=(n, k))
    odds = EQUAL_LENGTH + LENGTH_COEF * np.tanh(longer / longer.std())
    won = (rng.random((n, k)) < expit(odds)).astype(float)
    return length_controlled_win_rate(won, longer).rate, float(expit(EQUAL_LENGTH))


def elo(
    rng: np.random.Generator, n: int, k: int, spread: float
) -> tuple[Interval, float]:
    """The best of three policies whose responses are compared two by two.

    Gumbel noise makes Bradley–Terry exact, and that a response is in two comparisons
    makes those depend on each other.
    """
    rewards = STRENGTHS[:, None] + spread * rng.gumbel(size=(n, len(STRENGTHS), k))
    points = (rewards[:, :, None, :] > rewards[:, None, :, :]).sum(axis=-1)
    truth = ELO_MEAN + ELO_SCALE * float(STRENGTHS[0])
    return elo_ratings(bradley_terry(points))[0], truth


SIMULATIONS = (
    Simulation("expected reward, queries sampled", sampled_queries, 1),
    Simulation("expected reward, queries sampled", sampled_queries, 4),
    Simulation("expected reward, queries sampled", sampled_queries, 4, spread=4.0),
    Simulation("expected reward, queries fixed", fixed_queries, 4),
    Simulation("difference of two policies", difference, 4),
    Simulation("win rate", wins, 1),
    Simulation("win rate", wins, 4),
    Simulation("win rate", wins, 4, spread=0.5),
    Simulation("win rate at equal length", wins_at_equal_length, 1),
    Simulation("Elo rating", elo, 4),
    Simulation("expected reward, skewed queries", skewed_queries, 4),
)


def main(config: Config) -> list[list[str]]:
    """Simulates all of them and shows how often the truth was inside."""
    run_dir = create_run_dir(config.run_dir, config, resume=True)
    shares = [[covered(x, n, config) for n in QUERIES] for x in SIMULATIONS]
    every = list(chain(*shares))
    save_json(run_dir / "summary.json", {"least": min(every), "most": max(every)})
    rows = [
        [simulation.name, f"{simulation.responses}", f"{simulation.spread:g}"]
        + [f"{100 * share:.1f}" for share in found]
        for simulation, found in zip(SIMULATIONS, shares, strict=True)
    ]
    columns = ["interval", "K", "spread", *(f"{n} queries" for n in QUERIES)]
    print_table("Intervals that contain the truth (%), 95 expected", columns, rows)
    lines = [columns, ["---"] * len(columns), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (run_dir / "table.md").write_text(text, encoding="utf-8")
    return rows


def covered(simulation: Simulation, queries: int, config: Config) -> float:
    """The share of the repetitions whose interval contains the truth."""
    rng = np.random.default_rng((config.seed, queries))
    inside = 0
    for _ in range(config.repetitions):
        drawn = rng, queries, simulation.responses, simulation.spread
        interval, truth = simulation.draw(*drawn)
        inside += interval.low <= truth <= interval.high
    return inside / config.repetitions


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
