"""Reward models with users: how they are trained, and what one user's reward is."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inputs import Data
from experiments.judgements import Judgement
from rlhf_jax.data import (
    Preference,
    batches,
    collate_preferences,
    tokenize_preferences,
)
from rlhf_jax.data.tokenizing import TooLong
from rlhf_jax.errors import UserError
from rlhf_jax.models import score_apply
from rlhf_jax.rewards import fit_user, sequence_scores, user_prior, user_reward_params
from rlhf_jax.rundir import load_json, save_json
from rlhf_jax.stages import Stage, load_stage, pad_id
from rlhf_jax.steps import personal_terms
from rlhf_jax.types import Array, Params, PreferenceBatch

USERS_FILE = "users.json"
SMALL = 0.1  # of new weights: not all the same, nor far from the pooled score


@dataclasses.dataclass(frozen=True)
class UserOptions:
    """What a user's reward adds to everybody's, with --kind personal."""

    features: int = 4
    """Numbers a user: as many ways in which tastes may differ."""
    prior_std: float = 1.0
    """Standard deviation of these numbers before any label; less keeps users alike."""

    def __post_init__(self):
        if self.features < 1:
            raise UserError(f"users.features = {self.features}: expected 1 or more")
        if not self.prior_std > 0:
            raise UserError(
                f"users.prior_std = {self.prior_std}: expected a positive number"
            )


def begin_users(
    options: UserOptions,
    judgement: Judgement,
    data: Data,
    run_dir: Path,
    *,
    key: Array,
) -> tuple[Judgement, Data, Params]:
    """(judgement, data, new parameters), with a row of the parameters for each user.

    Who has a row is written to users.json. Held-out pairs of others get the pooled
    score.

    Raises:
      UserError: a pair to learn from does not say who judged it, or all are one user's.
    """
    for index, example in enumerate(data.learned.examples):
        if example.annotator < 0:
            raise UserError(
                f"{example.origin or f'pair {index}'}: no annotator, expected an "
                "integer ≥ 0 in the column 'annotator', who judged; add or rename it "
                "(data.columns), or train with --kind pairwise"
            )
    names = np.unique([example.annotator for example in data.learned.examples])
    if len(names) < 2:
        raise UserError(
            f"all pairs are of annotator {names[0]}: expected at least 2 users; train "
            "with --kind pairwise"
        )
    save_json(run_dir / USERS_FILE, {"annotators": names.tolist()})

    num_pairs = sum(example.weight for example in data.learned.examples)
    terms = functools.partial(
        personal_terms, prior_std=options.prior_std, num_pairs=num_pairs
    )
    rows = functools.partial(numbered, names)
    held_out = data.held_out._replace(collate=rows(data.held_out.collate))
    return (
        judgement._replace(terms=terms, num_outputs=1 + options.features),
        data._replace(collate=rows(data.collate), held_out=held_out),
        {"users": SMALL * jax.random.normal(key, (len(names), options.features))},
    )


def numbered(names: np.ndarray, collate: Callable[..., Any]) -> Callable[..., Any]:
    """A collate whose annotators are places in sorted names; −1 who is not there."""

    def known(*args: Any, **options: Any) -> Any:
        batch = collate(*args, **options)
        row = np.searchsorted(names, batch.annotator).clip(max=len(names) - 1)
        row = np.where(names[row] == batch.annotator, row, -1).astype(np.int32)
        return dataclasses.replace(batch, annotator=row)

    return known


class Users(NamedTuple):
    """A reward model of many users."""

    stage: Stage  # without adapters
    annotators: list[int]  # whose weights the rows of ``weights`` are
    weights: Array  # [U, R]

    def params(self, weights: Array) -> Params:
        """Of the scalar reward model of a user with these weights."""
        return user_reward_params(self.stage.params, weights)

    def fit(self, leads: Array, weight: Array) -> Array:
        """[R] weights of a new user: [N, 1 + R] chosen less rejected, [N] weights."""
        prior = user_prior(self.weights)
        return fit_user(leads[:, 0], leads[:, 1:], weight, prior)


def load_users(path: Path, *, option: str) -> Users:
    """A reward model that was trained with --kind personal."""
    if not (path / USERS_FILE).is_file():
        raise UserError(
            f"{option} {path}: no {USERS_FILE}, expected the run directory of a reward "
            "model with users; train one with experiments.reward_model --kind personal"
        )
    stage = load_stage(path, "personal", option=option).merged()
    names = load_json(path / USERS_FILE)["annotators"]
    return Users(stage, names, stage.params["users"])


def pair_leads(
    stage: Stage,
    pairs: Sequence[Preference[str]],
    *,
    too_long: TooLong = "error",
    batch_size: int = 256,
) -> Array:
    """[N, outputs] what a network gives the chosen less what it gives the rejected."""
    limits: Any = {"max_length": stage.model.max_length, "too_long": too_long}
    ids, _ = tokenize_preferences(pairs, stage.tokenizer, **limits)
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in ids)
    collate = functools.partial(
        collate_preferences, length=longest, pad_id=pad_id(stage.tokenizer)
    )
    score_fn = score_apply(stage.model, num_outputs=stage.num_outputs)

    @jax.jit
    def lead(params: Params, batch: PreferenceBatch) -> Array:
        score = functools.partial(sequence_scores, score_fn, params)
        return score(batch.chosen) - score(batch.rejected)

    return jnp.concatenate(
        [
            lead(stage.params, batch)[real]
            for batch, real in batches(ids, min(batch_size, len(ids)), collate)
        ]
    )
