"""Users with opposed tastes: one reward for all of them, and one for each.

  python -m experiments.personalize
  python -m experiments.personalize --seeds 0 --users 20

Four groups of simulated users judge pairs of reviews, few pairs each. All like warm
reviews; whether these should be long, and in the first person, they disagree about. A
pooled reward model and one with users (`--kind personal`) are trained on the
same rows. Then new users come, label some pairs, and their rewards are fitted, the
network frozen. Both are measured on held-out pairs, by what the new users really like:
contested pairs, which split the groups two to two, and the others.

The table is printed and written to table.md, the picture to personal.png;
docs/personal.md has the numbers. A result that is there is not made again.
"""

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, reward_model
from experiments.inputs import DataConfig
from experiments.keeping import keep, keep_compiled
from experiments.personal_report import Result, draw, show
from experiments.sft import SMALL
from experiments.tastes import Pair, as_row, judged_rows, make_pair, make_users
from experiments.users import UserOptions, Users, load_users, pair_leads
from rlhf_jax.data import preferences, read_rows, write_rows
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir, load_json
from rlhf_jax.stages import load_stage
from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """A simulation of users whose tastes differ."""

    run_dir: Path = Path("runs/personalize")
    """Where judgements, models, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the users, their labels and the training."""
    users: int = 40
    """Of each of the four groups, to learn from."""
    labels: int = 40
    """Pairs that each of them judges."""
    new_users: int = 10
    """Of each group, who are not learned from."""
    few: tuple[int, ...] = (0, 5, 10, 20, 40)
    """Labels of a new user."""
    eval_pairs: int = 1_000
    """Held-out pairs, the same for all new users."""
    temperature: float = 0.4
    """Noise of the labels, in units of the strength of a taste."""
    options: UserOptions = UserOptions()
    """The model's users."""
    epochs: int = 6
    """Passes over the labels, of both models."""
    batch_size: int = 32
    """Pairs an update."""
    optim: OptimConfig = OptimConfig(
        learning_rate=1e-2, schedule="cosine", warmup=20, weight_decay=0.1
    )
    """Optimiser and schedule."""
    model: TransformerConfig = dataclasses.replace(
        SMALL, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_head=16, d_ff=64
    )
    """Each reward model."""


def main(config: Config) -> list[Result]:
    """Trains and fits what has no result yet, and shows all."""
    run_dir = create_run_dir(config.run_dir, config, resume=True)
    keep_compiled(run_dir / "compiled")
    results = []
    for seed in config.seeds:
        path = run_dir / f"seed{seed}" / "result.json"
        keep(path, find, config, path.parent, seed)
        results.append(load_json(path))
    show(results, run_dir / "table.md")
    draw(results, run_dir / "personal.png")
    print(f"table: {run_dir / 'table.md'}  picture: {run_dir / 'personal.png'}")
    return results


def find(config: Config, folder: Path, seed: int) -> Result:
    """Both models, and how often they are right about users known and new."""
    rng = random.Random(f"personalize/{seed}")
    known, new = (make_users(n, rng) for n in (config.users, config.new_users))
    pairs = write_judgements(config, folder, known, new, rng)
    for kind in ("pairwise", "personal"):
        train(config, folder, kind, seed)
    pooled = load_stage(folder / "pairwise", "reward", option="run_dir")
    users = load_users(folder / "personal", option="run_dir")
    held_out = preferences(read_rows(folder / "held_out.jsonl"))
    leads = np.stack([pair.lead for pair in pairs])
    split = np.array([pair.split() for pair in pairs])

    def accuracy(lead: Any, tastes: np.ndarray) -> list[float]:
        """Of [N, users] or [N, 1], by how many groups are in the minority."""
        right = (np.asarray(lead) > 0) == (leads @ tastes.T > 0)
        return [float(right[split == kind].mean()) for kind in range(3)]

    features = pair_leads(users.stage, held_out)
    own = lambda weights: features[:, :1] + features[:, 1:] @ weights.T
    found = {"pooled": accuracy(pair_leads(pooled, held_out), new)}
    labels = pair_leads(users.stage, preferences(read_rows(folder / "new.jsonl")))
    labels = labels.reshape(len(new), -1, labels.shape[1])  # user after user
    for count in config.few:
        found[f"{count}"] = accuracy(own(fit_users(users, labels, count)), new)
    tastes = known[np.array(users.annotators)]
    found["known"] = accuracy(own(users.weights), tastes)
    return {
        "seed": seed,
        "pairs": [int((split == kind).sum()) for kind in range(3)],
        "accuracy": found,
        "weights": users.weights.tolist(),
        "groups": [who // config.users for who in users.annotators],
    }


def write_judgements(
    config: Config, folder: Path, known: Any, new: Any, rng: random.Random
) -> list[Pair]:
    """What all users say, as rows; returns the pairs that are held out."""
    judged = functools.partial(judged_rows, temperature=config.temperature, rng=rng)
    rows = judged(enumerate(known), split="train", labels=config.labels)
    rng.shuffle(rows)
    write_rows(rows, folder / "train.jsonl")
    who = enumerate(new, start=len(known))
    rows = judged(who, split="test", labels=max(config.few))
    write_rows(rows, folder / "new.jsonl")
    pairs = [make_pair(rng, "test") for _ in range(config.eval_pairs)]
    write_rows((as_row(pair, True) for pair in pairs), folder / "held_out.jsonl")
    return pairs


def train(config: Config, folder: Path, kind: Any, seed: int) -> None:
    """A reward model on the users' labels."""
    asked = reward_model.Config(
        folder / kind,
        DataConfig(str(folder / "train.jsonl")),
        kind=kind,
        users=config.options,
        model=config.model,
        optim=config.optim,
        batch_size=config.batch_size,
        epochs=config.epochs,
        eval_every=400,
        save_every=10_000,
        seed=seed,
        devices=1,
    )
    reward_model.main(asked)


def fit_users(users: Users, labels: Array, count: int) -> Array:
    """[U, R] weights of U new users, from the first so many of [U, N, 1 + R] labels."""
    weight = (jnp.arange(labels.shape[1]) < count).astype(jnp.float32)
    return jax.jit(jax.vmap(users.fit, in_axes=(0, None)))(labels, weight)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
