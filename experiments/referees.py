"""What else is measured of responses: the truth, referees, repetition."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from experiments.networks import load_reward, told_columns
from experiments.online import Given, OnlineConfig
from experiments.rollouts import Sampled, gold_score, make_scorer
from rlhf_jax.masking import masked_sum
from rlhf_jax.ops import ensemble_disagreement, repetition
from rlhf_jax.parallel import Where, data_parallel, replicate
from rlhf_jax.rewards import RewardFunction
from rlhf_jax.stages import Stage
from rlhf_jax.types import Array, Metrics, Params, Rollout

NGRAM = 2  # tokens, of rollout/repetition


class Referees(NamedTuple):
    """Rewards that nothing is optimised for."""

    judges: dict[str, Stage | RewardFunction]  # by name, for what a run was given
    params: list[Params]  # of each; None for a function


def load_referees(config: OnlineConfig, given: Given) -> Referees:
    """Those of --referee, as the reward is loaded."""
    judges = {}
    for number, path in enumerate(config.referee, 1):
        asked = path, config.reward_kind, given.policy, config.pretrained
        judge = load_reward(*asked, config.reward_label, option="--referee")
        known = given.loader.examples, given.policy.tokenizer
        judges[f"referee{number}"] = told_columns(judge, *known)
    params = [j.whole() if isinstance(j, Stage) else None for j in judges.values()]
    return Referees(judges, params)


def make_others(
    config: OnlineConfig, given: Given, referees: Referees, devices: Where
) -> Callable[[Sampled], dict[str, float]]:
    """A function of what an iteration has sampled, to metrics that train nothing.

    They are computed apart from the steps, whose programs stay what they are.
    """
    tokenizer, gold = given.policy.tokenizer, given.gold
    judges, placed = referees.judges.values(), replicate(referees.params, devices)
    asked = config.reward_kind, tokenizer, devices
    scorers = [
        make_scorer(judge, params, *asked, **config.calls())
        for judge, params in zip(judges, placed, strict=True)
    ]
    models = all(isinstance(judge, Stage) for judge in (given.reward, *judges))
    step = functools.partial(others_step, comparable=models)
    measure = data_parallel(step, devices, in_axes=(0, 0, 0), out_axes=None)

    def others(sampled: Sampled) -> dict[str, float]:
        rollout, scores = sampled.rollout, [score(sampled.rollout) for score in scorers]
        metrics = measure(rollout, sampled.scores, scores)
        return gold_score(gold, tokenizer, rollout) | metrics.compute()

    return others


def others_step(
    rollout: Rollout,
    scores: Array,
    referees: list[Array],
    *,
    comparable: bool,
    axis_name: str | None = None,
) -> Metrics:
    """Repetition; what referees say, and where ``comparable`` how far all disagree."""
    responses, batch = rollout.row >= 0, rollout.batch
    found = {"rollout/repetition": repetition(batch.tokens, batch.mask, ngram=NGRAM)}
    if referees:
        found["objective/referee"] = jnp.mean(jnp.stack(referees), axis=0)
    if referees and comparable:
        every = jnp.stack([scores, *referees])
        found["objective/disagreement"] = ensemble_disagreement(every)
    means = {name: masked_sum(x, responses) for name, x in found.items()}
    return Metrics.of(means).reduce(axis_name)
