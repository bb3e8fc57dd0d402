"""One user's reward model, of one that was trained on many users' pairs.

  python -m experiments.user_reward --reward runs/personal --annotator 7
  python -m experiments.user_reward --reward runs/personal --labels mine.jsonl
  python -m experiments.policy --reward runs/user_reward --run-dir runs/my_policy

The first is of a user whose pairs it was trained on. The second is of a new one: some
twenty rows of pairs (prompt, chosen, rejected) that this user judged; a few numbers are
fitted and the network stays as it is (`rewards.fit_user`). Without either it is
everybody's. What is written is a reward model with one output, as any other.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from experiments import cli
from experiments.judgements import pairs
from experiments.users import Users, load_users, pair_leads
from rlhf_jax import checkpoint
from rlhf_jax.data import read_rows
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.stages import CHECKPOINTS, save_model_files
from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """One user's reward."""

    run_dir: Path = Path("runs/user_reward")
    """Where the reward model goes."""
    reward: Path = Path("runs/reward")
    """Run directory of experiments.reward_model --kind personal."""
    annotator: int | None = None
    """A user whom it was trained with."""
    labels: str | None = None
    """Pairs that a new user has judged: a file or tfds:NAME."""
    too_long: TooLong = "error"
    """Pairs that do not fit: stop there, or keep the end of their prompts."""

    def __post_init__(self):
        if self.annotator is not None and self.labels is not None:
            raise UserError(
                f"--annotator {self.annotator} --labels {self.labels}: one is of a "
                "user who is known, the other of a new one; leave one out"
            )


def main(config: Config) -> Array:
    """Writes the reward model, and returns the user's weights [R]."""
    users = load_users(config.reward, option="--reward")
    weights, count = find_weights(config, users)
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    stage, params = users.stage, users.params(weights)
    save_model_files(run_dir, stage.model, stage.tokenizer, began=stage, num_outputs=1)
    state = {"params": params}
    checkpoint.save(run_dir / CHECKPOINTS, 0, state, host_state={}, keep=1)
    save_json(run_dir / "weights.json", {"weights": weights.tolist(), "labels": count})
    shown = ", ".join(f"{weight:.2f}" for weight in weights.tolist())
    print(f"{run_dir}: weights {shown}")
    return weights


def find_weights(config: Config, users: Users) -> tuple[Array, int]:
    """A user's weights, and of how many labels a new user's are."""
    if config.annotator is not None:
        if config.annotator not in users.annotators:
            some = ", ".join(map(str, users.annotators[:10]))
            raise UserError(
                f"--annotator {config.annotator}: not one of the "
                f"{len(users.annotators)} users of {config.reward} ({some}, …); give "
                "one of them, or pairs of a new user with --labels"
            )
        return users.weights[users.annotators.index(config.annotator)], 0
    if config.labels is None:
        return jnp.zeros(users.weights.shape[1]), 0
    labels = pairs(read_rows(config.labels))
    if len(who := sorted({pair.annotator for pair in labels})) > 1:
        raise UserError(
            f"--labels {config.labels}: pairs of {len(who)} annotators ({who[0]}, "
            f"{who[1]}, …), expected those of one user; keep one user's rows"
        )
    leads = pair_leads(users.stage, labels, too_long=config.too_long)
    weight = jnp.asarray([pair.weight for pair in labels], jnp.float32)
    return users.fit(leads, weight), len(labels)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
