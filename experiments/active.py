"""Active choice: people are asked about the pairs that reward models disagree about.

  python -m experiments.active
  python -m experiments.active --seeds 0 --rounds 4
  python -m experiments.active --repeated 0 --run-dir runs/active_plain

An ensemble of reward models is trained on some labelled pairs, says which pairs of a
pool it disagrees about (Christiano et al. 2017, arXiv:1706.03741, section 2.2.4), gets
labels for those, and is trained again. Beside it another that is given pairs at random.

The pool is like what a policy says: much of it is the same again. Nine in ten of its
pairs are of reviews that have four of the grammar's twenty opinion words; those with
the others are rare. The held-out pairs, which the truth orders, have all words alike.
With --repeated 0 the pool is like those. Labels come from a simulated person who sees
the truth through a little noise.

The table is printed and written to table.md, the picture to active.png;
docs/feedback.md has the numbers.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli
from experiments.ensemble import Ensemble, draw_rows, make_ensemble
from experiments.keeping import keep, keep_compiled
from experiments.label_curves import CHOICES, Choice, Result, draw, show
from experiments.label_pool import Pool, make_pools
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import choose_pairs
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir, load_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Labels for the pairs that teach most."""

    run_dir: Path = Path("runs/active")
    """Where results, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the pool, the labels and the training."""
    pool: int = 1_500
    """Pairs that could be labelled."""
    repeated: float = 0.9
    """Share of the pool's pairs that have the common words alone."""
    first: int = 60
    """Labels before the first choice, at random."""
    each: int = 60
    """Labels of a round."""
    rounds: int = 7
    """Rounds after the first labels."""
    eval_pairs: int = 1_000
    """Held-out pairs."""
    members: int = 3
    """Reward models of the ensemble."""
    updates: int = 100
    """Of each model in each round, from new parameters on."""
    batch_size: int = 32
    """Pairs an update."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    model: TransformerConfig = TransformerConfig(
        vocab_size=400,
        d_model=32,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        d_head=16,
        d_ff=64,
        max_length=64,
    )
    """Each reward model."""

    def __post_init__(self):
        asked = self.first + self.rounds * self.each
        if not 0 < self.first <= asked <= self.pool:
            raise UserError(
                f"first + rounds · each = {asked}: expected at most pool = {self.pool}"
            )
        if not 0 <= self.repeated <= 1:
            raise UserError(f"repeated = {self.repeated}: expected a share, 0 to 1")


def main(config: Config) -> list[Result]:
    """Finds the curves that are not there yet, and shows all."""
    run_dir = create_run_dir(config.run_dir, config, resume=True)
    keep_compiled(run_dir / "compiled")
    results = []
    for seed in config.seeds:
        for choice in CHOICES:
            path = run_dir / f"{choice}{seed}.json"
            keep(path, find_curve, config, choice, seed)
            results.append(load_json(path))
    share = show(results, run_dir / "table.md")
    draw(results, share, run_dir / "active.png")
    print(f"table: {run_dir / 'table.md'}  picture: {run_dir / 'active.png'}")
    return results


def find_curve(config: Config, choice: Choice, seed: int) -> Result:
    """Held-out accuracy of the ensemble's mean, after each round's labels."""
    pool, held_out, model = make_pools(
        config.model,
        pool=config.pool,
        repeated=config.repeated,
        held_out=config.eval_pairs,
        seed=seed,
    )
    ensemble = make_ensemble(
        model, config.optim, members=config.members, updates=config.updates
    )
    rng = np.random.default_rng([seed, CHOICES.index(choice)])
    first = np.random.default_rng(seed).permutation(config.pool)[: config.first]
    asked = np.isin(np.arange(config.pool), first)
    found: Result = {"choice": choice, "seed": seed, "labels": [], "accuracy": []}
    for number in range(config.rounds + 1):
        shape = (config.updates, config.members, config.batch_size)
        rows = draw_rows(np.flatnonzero(asked), shape, rng)
        key = jax.random.fold_in(jax.random.key(seed), number)
        params = ensemble.fit(pool.pairs, pool.labels, rows, key)
        mean = scores(ensemble, params, held_out).mean(axis=0)
        right = (mean[:, 0] > mean[:, 1]) == (held_out.labels > 0)
        found["labels"].append(int(asked.sum()))
        found["accuracy"].append(float(right.mean()))
        print(f"{choice}, seed {seed}: {asked.sum()} labels, {right.mean():.3f}")
        if choice == "active":
            both = scores(ensemble, params, pool)
            asked[choose_pairs(both, config.each, asked=asked)] = True
        else:
            free = np.flatnonzero(~asked)
            asked[rng.choice(free, config.each, replace=False)] = True
    return found


def scores(ensemble: Ensemble, params: Any, pool: Pool) -> np.ndarray:
    """[M, N, 2] of both completions."""
    sides = [ensemble.score(params, side) for side in pool.pairs]
    return np.stack(jax.device_get(sides), axis=-1)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
