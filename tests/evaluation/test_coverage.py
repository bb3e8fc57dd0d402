"""95 % intervals contain the truth in 93 to 97 % of 1,000 simulated repetitions."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from experiments.coverage import (
    LEAD,
    LEAD_STD,
    Config,
    Simulation,
    covered,
    fixed_queries,
    main,
    sampled_queries,
    wins,
)
from rlhf_jax.evaluation import expected_reward, win_rate


@pytest.mark.parametrize("queries", [8, 32])
@pytest.mark.parametrize(
    "draw, responses, spread",
    [
        (sampled_queries, 1, 1.0),
        (sampled_queries, 4, 4.0),
        (fixed_queries, 4, 1.0),
        (wins, 4, 1.0),
        (wins, 4, 0.5),
    ],
)
def test_coverage(draw, queries, responses, spread):
    simulation = Simulation("", draw, responses, spread)
    assert 0.93 <= covered(simulation, queries, Config()) <= 0.97


def test_eight_coins_exactly():
    """All nine outcomes by the binomial distribution: what docs/evaluation.md says."""
    truth = float(norm.cdf(LEAD / math.hypot(math.sqrt(2), LEAD_STD)))
    share = 0.0
    for won in range(9):
        rate = win_rate((np.arange(8) < won)[:, None].astype(float)).rate
        share += binom.pmf(won, 8, truth) * (rate.low <= truth <= rate.high)
    assert share == pytest.approx(0.943, abs=5e-4)


def test_responses_are_not_queries():
    """One interval over all responses alike would be far too narrow."""

    def pooled(rng, n, k, spread):
        rewards = rng.normal(size=(n, 1)) + spread * rng.normal(size=(n, k))
        return expected_reward(rewards.reshape(-1, 1)).sampled, 0.0

    simulation = Simulation("", pooled, 4, 0.5)
    assert covered(simulation, 32, Config(repetitions=300)) < 0.8


def test_the_command_writes_its_table(tmp_path):
    rows = main(Config(tmp_path, repetitions=2))
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == len(rows) + 2
    assert all(len(row) == 6 for row in rows)
    shares = [float(share) / 100 for row in rows for share in row[3:]]
    ends = {"least": min(shares), "most": max(shares)}
    assert json.loads((tmp_path / "summary.json").read_text()) == ends
